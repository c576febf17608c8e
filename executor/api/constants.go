package api

import (
	"net/url"
	"time"
)

// Names that the operator puts in the pod and the executor reads.
const (
	// Port on which the executor listens.
	Port = 5758
	// ContainerName of the executor in a pod.
	ContainerName = "task-executor"
	// EnvPublicKeys holds the operator's public keys, as token.FormatPublicKeys
	// writes them.
	EnvPublicKeys = "OPENSANDBOX_EXECUTOR_PUBLIC_KEYS"
	// EnvPodUID holds the pod's UID (downward API, metadata.uid).
	EnvPodUID = "OPENSANDBOX_POD_UID"
	// ArgRestartable makes the executor guard the pod's first process at its first start,
	// and clean the pod at a start that follows a reset with a restart. A pod whose executor
	// runs without this argument is not restarted in place. Neither is one of an earlier
	// version, which called it by another name.
	ArgRestartable = "--restartable"
	// DefaultStateDir is where the emptyDir with the records is mounted.
	DefaultStateDir = "/var/lib/task-executor"
	// RestartExitCode is what the executor's restart rule maps to
	// RestartAllContainers.
	RestartExitCode = 88
)

// HeaderBootID is in every answer and holds the executor's boot id: a random name that is
// another one after each start and after each reset. A request is good for one boot id.
const HeaderBootID = "Opensandbox-Boot-Id"

// Limits.
const (
	// MaxRequestBytes of a request's body; more is answered with 413.
	MaxRequestBytes = 1 << 20
	// MaxAnswerBytes of an answer that a client reads.
	MaxAnswerBytes = 64 << 10
	// MaxMessageBytes of a task's message.
	MaxMessageBytes = 256
	// MaxWait of a long poll.
	MaxWait = 55 * time.Second
	// DefaultGraceSeconds between SIGTERM and SIGKILL.
	DefaultGraceSeconds = 10
	// MaxGraceSeconds and MaxTimeoutSeconds bound what a request may ask for.
	MaxGraceSeconds   = 3600
	MaxTimeoutSeconds = 365 * 24 * 3600
)

// Paths.
const (
	TasksPath  = "/v1/tasks"
	ResetPath  = "/v1/reset"
	InfoPath   = "/v1/info"
	HealthPath = "/healthz"
)

// TaskPath is the path of one task.
func TaskPath(id string) string { return TasksPath + "/" + url.PathEscape(id) }
