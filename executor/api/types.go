package api

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// TaskRequest is the body of PUT /v1/tasks/{id}.
type TaskRequest struct {
	// ContainerID is the sandbox container's ID as the pod's status has it,
	// for example "containerd://4f1c...".
	ContainerID string `json:"containerID"`
	// FallbackEnv is the sandbox container's environment as its pod declares it. It is used
	// only where the container's first process has overwritten its own.
	FallbackEnv []EnvVar `json:"fallbackEnv,omitempty"`
	// Spec is the task. A second PUT of the same id must have an equal spec; the two
	// fields above may differ.
	Spec TaskSpec `json:"spec"`
}

// TaskSpec says what to run and for how long.
type TaskSpec struct {
	Process Process `json:"process"`
	// TimeoutSeconds after which the task is stopped; 0 means never.
	TimeoutSeconds int64 `json:"timeoutSeconds,omitempty"`
	// GraceSeconds between SIGTERM and SIGKILL; DefaultGraceSeconds if absent.
	GraceSeconds *int64 `json:"graceSeconds,omitempty"`
}

// Process is the command of a task.
type Process struct {
	// Command and Args together are the argument vector. The first element is
	// looked up in the task's PATH, inside the sandbox container, unless it has
	// a slash.
	Command []string `json:"command"`
	Args    []string `json:"args,omitempty"`
	// Env is laid over the sandbox container's environment.
	Env []EnvVar `json:"env,omitempty"`
	// WorkingDir defaults to the sandbox container's.
	WorkingDir string `json:"workingDir,omitempty"`
}

// EnvVar is one environment variable.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
}

// Grace is the time between SIGTERM and SIGKILL.
func (s TaskSpec) Grace() time.Duration {
	if s.GraceSeconds == nil {
		return DefaultGraceSeconds * time.Second
	}
	return time.Duration(*s.GraceSeconds) * time.Second
}

// Timeout is the time that the task may take; 0 means any.
func (s TaskSpec) Timeout() time.Duration {
	return time.Duration(s.TimeoutSeconds) * time.Second
}

// Equal tells whether both specs ask for the same. An absent list equals an
// empty one, and an absent grace equals the default.
func (s TaskSpec) Equal(other TaskSpec) bool {
	return reflect.DeepEqual(s.normal(), other.normal())
}

func (s TaskSpec) normal() TaskSpec {
	grace := int64(s.Grace() / time.Second)
	s.GraceSeconds = &grace
	s.Process.Command = append([]string{}, s.Process.Command...)
	s.Process.Args = append([]string{}, s.Process.Args...)
	s.Process.Env = append([]EnvVar{}, s.Process.Env...)
	return s
}

// TaskState is how far a task has come.
type TaskState string

const (
	// Starting: accepted and recorded, the command is not running yet.
	Starting TaskState = "Starting"
	// Running: the command has been executed.
	Running TaskState = "Running"
	// Succeeded: the first process ended with exit code 0.
	Succeeded TaskState = "Succeeded"
	// Failed: anything else; Reason says what.
	Failed TaskState = "Failed"
)

// Ended tells whether the state is final.
func (s TaskState) Ended() bool { return s == Succeeded || s == Failed }

// Reasons of a task that failed.
const (
	// ReasonExitCode: the first process ended with an exit code other than 0.
	ReasonExitCode = "ExitCode"
	// ReasonSignaled: the first process was killed by a signal.
	ReasonSignaled = "Signaled"
	// ReasonTimeout: the task did not end within its timeout.
	ReasonTimeout = "Timeout"
	// ReasonOOMKilled: the kernel killed the first process because the memory limit was
	// reached, which is the task executor's.
	ReasonOOMKilled = "OOMKilled"
	// ReasonCommandNotFound (exit code 127): there is no such command.
	ReasonCommandNotFound = "CommandNotFound"
	// ReasonNotExecutable (exit code 126): the command cannot be executed.
	ReasonNotExecutable = "NotExecutable"
	// ReasonWorkingDir (exit code 128): the working directory cannot be entered.
	ReasonWorkingDir = "WorkingDirUnusable"
	// ReasonCannotStart (exit code 128): something else kept it from starting.
	ReasonCannotStart = "CannotStart"
	// ReasonExecutorRestarted: the executor ended while the task ran, and the task with it.
	ReasonExecutorRestarted = "ExecutorRestarted"
	// ReasonSupervisorLost: the process that watches the task was killed, and the task with
	// it, so that its result is not known.
	ReasonSupervisorLost = "SupervisorLost"
	// ReasonRecordUnreadable: the task may have run, but its record was damaged.
	ReasonRecordUnreadable = "RecordUnreadable"
)

// Task is what the executor tells about a task.
type Task struct {
	ID    string    `json:"id"`
	State TaskState `json:"state"`
	// ExitCode of the first process; 128 + signal if a signal ended it, 126, 127
	// or 128 if it could not start. Absent while it runs and where unknown.
	ExitCode *int32 `json:"exitCode,omitempty"`
	// Signal is the one that ended the first process; 0 if none did.
	Signal int32  `json:"signal,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Message of a failed task: why it could not start, else the last
	// MaxMessageBytes of its stderr.
	Message string `json:"message,omitempty"`
	// MissingCapabilities are those that the sandbox container has and the executor has
	// not. The task cannot have them either.
	MissingCapabilities []string   `json:"missingCapabilities,omitempty"`
	StartedAt           *time.Time `json:"startedAt,omitempty"`
	FinishedAt          *time.Time `json:"finishedAt,omitempty"`
}

// TaskList is the answer to GET /v1/tasks.
type TaskList struct {
	// BootID and Version make the cursor for the next call.
	BootID  string `json:"bootID"`
	Version int64  `json:"version"`
	Tasks   []Task `json:"tasks"`
}

// Cursor returns the point in the executor's history that the list shows.
func (l TaskList) Cursor() Cursor { return Cursor{BootID: l.BootID, Version: l.Version} }

// Cursor is a point in an executor's history. A cursor with another boot id is older than
// everything.
type Cursor struct {
	BootID  string
	Version int64
}

// String is the form of the since parameter: BOOT:N.
func (c Cursor) String() string {
	if c.BootID == "" {
		return ""
	}
	return c.BootID + ":" + strconv.FormatInt(c.Version, 10)
}

// ParseCursor reads what String wrote; the empty string is the zero cursor.
func ParseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	boot, version, found := strings.Cut(s, ":")
	n, err := strconv.ParseInt(version, 10, 64)
	if !found || boot == "" || err != nil || n < 0 {
		return Cursor{}, fmt.Errorf("%q is not of the form BOOT:N", truncate(s))
	}
	return Cursor{BootID: boot, Version: n}, nil
}

// ResetRequest is the body of POST /v1/reset; an empty body equals {}.
type ResetRequest struct {
	// Restart makes the executor, once everything is stopped and wiped and the
	// answer is on its way, exit with the code that its container's restart rule
	// maps to RestartAllContainers. Where that could not make the pod clean, the
	// request is refused (ProblemNotRestartable).
	Restart bool `json:"restart,omitempty"`
	// GraceSeconds shortens (never lengthens) the grace of the running tasks.
	GraceSeconds *int64 `json:"graceSeconds,omitempty"`
}

// ResetAnswer is the answer to POST /v1/reset.
type ResetAnswer struct {
	// Stopped is the number of tasks that there were.
	Stopped int `json:"stopped"`
	// Exiting is true if the executor exits after this answer.
	Exiting bool `json:"exiting"`
}

// Info is the answer to GET /v1/info.
type Info struct {
	BootID    string    `json:"bootID"`
	StartedAt time.Time `json:"startedAt"`
	// Supported is false if the self-test at start found that tasks cannot run
	// here; Problems says what it found.
	Supported bool     `json:"supported"`
	Problems  []string `json:"problems,omitempty"`
	// Capabilities that the executor has.
	Capabilities []string `json:"capabilities"`
	// Recycle tells how the pod was cleaned at this start.
	Recycle Recycle `json:"recycle"`
}

// RecycleState is the outcome of cleaning the pod at the executor's start.
type RecycleState string

const (
	// RecycleOff: the executor runs without ArgRestartable.
	RecycleOff RecycleState = "Off"
	// RecycleFirstStart: nothing was to be cleaned, the files were recorded.
	RecycleFirstStart RecycleState = "FirstStart"
	// RecycleNotRequested: the executor started again although no reset had asked for a
	// restart. The sandbox may be in use, so nothing was touched.
	RecycleNotRequested RecycleState = "NotRequested"
	// RecycleClean: everything was emptied and the files are as at first.
	RecycleClean RecycleState = "Clean"
	// RecycleDirty: the pod must not be handed out again.
	RecycleDirty RecycleState = "Dirty"
)

// Recycle tells how the pod was cleaned at the executor's start.
type Recycle struct {
	State RecycleState `json:"state"`
	// Differences that make the pod dirty.
	Differences []string `json:"differences,omitempty"`
	// NotRestartable says why a restart could not make the pod clean; it is empty where it
	// could. A reset that asks for a restart is refused then, and nothing is done.
	NotRestartable string `json:"notRestartable,omitempty"`
}

// Problem is a problem document (RFC 9457) with two members of our own.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Reason is for programs; one of the Problem constants.
	Reason string `json:"reason,omitempty"`
	// Field of the request that is wrong.
	Field string `json:"field,omitempty"`
}

// Reasons of a problem.
const (
	ProblemInvalid           = "Invalid"
	ProblemTooLarge          = "TooLarge"
	ProblemNotFound          = "NotFound"
	ProblemMethod            = "MethodNotAllowed"
	ProblemSpecDiffers       = "SpecDiffers"
	ProblemResetting         = "Resetting"
	ProblemTooManyTasks      = "TooManyTasks"
	ProblemContainerNotFound = "ContainerNotFound"
	ProblemProcessesRemain   = "ProcessesRemain"
	ProblemNotRestartable    = "NotRestartable"
	ProblemInternal          = "Internal"
)
