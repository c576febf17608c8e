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
	// EnvTLSKey holds the private key of this pod's executor, as token.FormatSeed writes it.
	EnvTLSKey = "OPENSANDBOX_EXECUTOR_TLS_KEY"
	// LauncherDir is where the emptyDir with the launcher is mounted, in the executor's
	// container and in the sandbox container.
	LauncherDir = "/opensandbox"
	// DefaultStateDir is where the emptyDir with the records is mounted.
	DefaultStateDir = "/var/lib/task-executor"
	// RestartExitCode is what the executor's restart rule maps to
	// RestartAllContainers.
	RestartExitCode = 88
	// DirtyExitCode is how an executor ends that has found traces of the last owner.
	DirtyExitCode = 89
)

// Subcommands of the program.
const (
	// AwaitCommand is the executor's own postStart hook: no container after it starts
	// before it has looked at the pod and listens.
	AwaitCommand = "await"
	// InstallCommand puts the launcher into LauncherDir.
	InstallCommand = "install"
	// HookCommand is the sandbox container's postStart hook. What follows it is the
	// template's own one.
	HookCommand = "hook"
	// LaunchCommand is how the hook starts the launcher.
	LaunchCommand = "launch"
	// LauncherPath is the program, as the sandbox container sees it.
	LauncherPath = LauncherDir + "/launcher"
)

// HeaderBootID is in every answer: the random name of this run of the executor.
const HeaderBootID = "Opensandbox-Boot-Id"

// Limits.
const (
	// MaxRequestBytes of a request's body; more is answered with 413. It has room for
	// MaxFilesBytes in base64 and MaxProcessBytes.
	MaxRequestBytes = 2 << 20
	// MaxFilesBytes of the contents of a task's files together, and MaxFiles of them.
	MaxFilesBytes = 1 << 20
	MaxFiles      = 1024
	// MaxProcessBytes of the rest of a task.
	MaxProcessBytes = 512 << 10
	// MaxAnswerBytes of an answer that a client reads.
	MaxAnswerBytes = 64 << 10
	// MaxMessageBytes of a task's message.
	MaxMessageBytes = 256
	// MaxWait of a long poll.
	MaxWait = 55 * time.Second
	// DefaultGraceSeconds between SIGTERM and SIGKILL.
	DefaultGraceSeconds = 10
	// DefaultHookSeconds and MaxHookSeconds that a hook may take.
	DefaultHookSeconds = 30
	MaxHookSeconds     = 600
	// MaxGraceSeconds and MaxTimeoutSeconds bound what a request may ask for.
	MaxGraceSeconds   = 3600
	MaxTimeoutSeconds = 365 * 24 * 3600
)

// Paths.
const (
	TasksPath  = "/v1/tasks"
	ResetPath  = "/v1/reset"
	HealthPath = "/healthz"
	// ReadyPath is the health that pods are handed out by: a launcher is there, too.
	ReadyPath = HealthPath + "?launcher=wanted"
)

// TaskPath is the path of one task.
func TaskPath(id string) string { return TasksPath + "/" + url.PathEscape(id) }
