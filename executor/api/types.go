package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// TaskRequest is the body of PUT /v1/tasks/{id}.
type TaskRequest struct {
	// Shard of the sandbox, which the executor writes before what the task prints.
	Shard int32 `json:"shard"`
	// Spec is the task. A second PUT of the same id must have an equal one.
	Spec TaskSpec `json:"spec"`
}

// TaskSpec says what to run and for how long.
type TaskSpec struct {
	Process Process `json:"process"`
	// Files are written before the command is executed.
	Files []File `json:"files,omitempty"`
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
	// PreStart runs before the command, which is not executed if it fails.
	PreStart *Hook `json:"preStart,omitempty"`
	// PostStop runs after the command, however that ended, if anything of the task has run.
	// The end of the task is told afterwards.
	PostStop *Hook `json:"postStop,omitempty"`
}

// Hook is a command that runs before or after the task's, in the same environment.
type Hook struct {
	Command []string `json:"command"`
	// TimeoutSeconds after which it is killed.
	TimeoutSeconds int64 `json:"timeoutSeconds"`
}

// Timeout is the time that the hook may take.
func (h *Hook) Timeout() time.Duration { return time.Duration(h.TimeoutSeconds) * time.Second }

// EnvVar is one environment variable.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
}

// File is a file to write: whole or not at all, over what is there.
type File struct {
	// Path is absolute and clean.
	Path string `json:"path"`
	// Mode bits, at most 0777.
	Mode    uint32 `json:"mode"`
	Content []byte `json:"content,omitempty"`
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

// Digest is equal for specs that ask for the same: an absent list equals an empty one,
// and an absent grace equals the default.
func (s TaskSpec) Digest() string {
	grace := int64(s.Grace() / time.Second)
	s.GraceSeconds = &grace
	s.Process.Command = append([]string{}, s.Process.Command...)
	s.Process.Args = append([]string{}, s.Process.Args...)
	s.Process.Env = append([]EnvVar{}, s.Process.Env...)
	text, _ := json.Marshal(s) // strings and numbers always marshal
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// TaskState is where a task is in its life.
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
	// ReasonOOMKilled: the kernel killed the first process, or the sandbox container,
	// for want of memory.
	ReasonOOMKilled = "OOMKilled"
	// ReasonCommandNotFound (exit code 127): there is no such command.
	ReasonCommandNotFound = "CommandNotFound"
	// ReasonNotExecutable (exit code 126): the command cannot be executed.
	ReasonNotExecutable = "NotExecutable"
	// ReasonWorkingDir (exit code 128): the working directory cannot be entered.
	ReasonWorkingDir = "WorkingDirUnusable"
	// ReasonPreStartFailed: the preStart hook failed, so the command was not executed. The
	// exit code is the hook's.
	ReasonPreStartFailed = "PreStartFailed"
	// ReasonFileUnwritable (exit code 128): a file of the task cannot be written; the message
	// names it.
	ReasonFileUnwritable = "FileUnwritable"
	// ReasonCannotStart (exit code 126 or 128): something else kept it from starting.
	ReasonCannotStart = "CannotStart"
	// ReasonExecutorRestarted: the executor ended while the task ran.
	ReasonExecutorRestarted = "ExecutorRestarted"
	// ReasonLauncherLost: the launcher, which had started the task and waited for its
	// end, was killed, so its result is not known. Where its container ended, the operator
	// finds that out and says so instead.
	ReasonLauncherLost = "LauncherLost"
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
	// Signal that ended the first process; 0 if none did.
	Signal int32  `json:"signal,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Message of a failed task: why it could not start, else the last
	// MaxMessageBytes of its stderr.
	Message string `json:"message,omitempty"`
	// StartedAt is when the command was executed; of a task whose launcher was lost before
	// that was known, when it was asked for.
	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
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

// Cursor is a point in an executor's history. A cursor of another boot is
// older than everything.
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
	// maps to RestartAllContainers.
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
	ProblemInvalid     = "Invalid"
	ProblemTooLarge    = "TooLarge"
	ProblemNotFound    = "NotFound"
	ProblemMethod      = "MethodNotAllowed"
	ProblemSpecDiffers = "SpecDiffers"
	ProblemResetting   = "Resetting"
	// ProblemAnotherTask: there is a task of another id, and the executor takes one
	// between two resets.
	ProblemAnotherTask = "AnotherTask"
	// ProblemNoLauncher: no launcher is there, because the sandbox container starts.
	ProblemNoLauncher      = "NoLauncher"
	ProblemProcessesRemain = "ProcessesRemain"
	// ProblemClock: the token is the operator's, and not good at this time by the
	// executor's clock.
	ProblemClock    = "Clock"
	ProblemInternal = "Internal"
)
