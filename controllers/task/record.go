package task

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

// unknownAfter is how long an executor may not answer, before its task counts as unknown.
const unknownAfter = 30 * time.Second

// state is where the task of a shard is.
type state int

const (
	pending state = iota
	running
	succeeded
	failed
)

// record is what is known of the task of one shard.
type record struct {
	// pod it runs in; empty while none was asked, also when state is from the status.
	pod     types.UID
	podName string
	state   state
	// stale: state is from the status, and the executor of pod has not confirmed it.
	stale bool
	// failure tells how a failed task failed.
	failure v1alpha1.FailedTask

	// answered is when the executor last answered, or began to be able to.
	answered time.Time
	// unknown: it has not answered for unknownAfter.
	unknown bool
	// stopped: the task was ended, because its sandbox is given back.
	stopped bool
	// over: the sandbox has ended, so that nobody has anything more to say of the task.
	over bool

	// Why the task cannot run, or not as it should.
	missing string // the pod has no executor
	invalid string // there is no task to run
	// refusal is why the executor does not take the task now.
	refusal struct{ reason, message string }
	// values that the task names cannot be had; the zero value says that they can.
	values shardtask.ValueError
}

func (rec *record) ended() bool { return rec.state == succeeded || rec.state == failed }

// begun says that a process of the task may have run.
func (rec *record) begun() bool { return rec.state != pending }

// learn takes in what the executor told of the task.
func (rec *record) learn(t *executorapi.Task, now time.Time) {
	rec.hear(now)
	rec.stale = false
	rec.refuse("", "")
	switch t.State {
	case executorapi.Succeeded:
		rec.state = succeeded
	case executorapi.Failed:
		rec.fail(t.Reason, t.Message)
		rec.failure.Signal = t.Signal
		if t.ExitCode != nil {
			rec.failure.ExitCode = *t.ExitCode
		}
	default:
		rec.state = running
	}
}

// fail ends the task as failed.
func (rec *record) fail(reason, message string) {
	rec.state = failed
	rec.failure = v1alpha1.FailedTask{Sandbox: rec.podName, Reason: cut(reason, 64), Message: cut(message, executorapi.MaxMessageBytes)}
}

// hear takes in that the executor has answered.
func (rec *record) hear(now time.Time) { rec.answered, rec.unknown = now, false }

// miss takes in that the executor did not answer. No answer is expected of a pod that is
// not ready, unless the task runs in it: the pod is not ready because of that silence.
func (rec *record) miss(now time.Time, ready bool) {
	switch {
	case !ready && !rec.begun():
		rec.answered, rec.unknown = now, false
	case now.Sub(rec.answered) >= unknownAfter:
		rec.unknown = true
	}
}

// refused says whether an error is an executor's own answer, and takes it in.
func (rec *record) refused(err error, now time.Time) bool {
	switch executorclient.Reason(err) {
	case executorapi.ProblemNoLauncher, executorapi.ProblemAnotherTask,
		executorapi.ProblemResetting, executorapi.ProblemInternal:
		rec.refuse(v1alpha1.ReasonExecutorRefuses, fmt.Sprintf("the task executor of sandbox %s takes no task now: %s",
			rec.podName, cut(err.Error(), executorapi.MaxMessageBytes)))
	case executorapi.ProblemClock:
		rec.refuse(v1alpha1.ReasonExecutorClock, fmt.Sprintf("the clock of sandbox %s's node and that of the operator differ: %s",
			rec.podName, cut(err.Error(), executorapi.MaxMessageBytes)))
	case executorapi.ProblemInvalid, executorapi.ProblemTooLarge:
		rec.fail(v1alpha1.ReasonRefused, refusalOf(err))
	default:
		return false
	}
	rec.hear(now)
	return true
}

// refusalOf says why an executor takes no such task. One that the pod has had since before the
// operator was updated calls what it does not know by its name alone.
func refusalOf(err error) string {
	var refused *executorclient.Error
	if errors.As(err, &refused) && slices.Contains([]string{"files", "preStart", "postStop"}, refused.Problem.Field) {
		return "the task executor of the sandbox is of a version of the operator that knows no files and no hooks: " + refused.Error()
	}
	return err.Error()
}

func (rec *record) refuse(reason, message string) {
	rec.refusal.reason, rec.refusal.message = reason, message
}

// waitForValues takes in that the task was not sent for want of a value. Nobody has asked its
// executor anything, so that one owes no answer.
func (rec *record) waitForValues(why *shardtask.ValueError, now time.Time) {
	rec.hear(now)
	rec.refuse("", "")
	rec.values = *why
}

// cut keeps the end of a text, as whole characters: the end tells most.
func cut(text string, most int) string {
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return strings.Clone(strings.ToValidUTF8(text, "")) // not to keep all of it in memory
}

// seed returns what the status says of the tasks.
func seed(bs *v1alpha1.BatchSandbox) map[int32]*record {
	records := map[int32]*record{}
	for _, shard := range shardtask.ParseShards(bs.Status.SucceededShards) {
		records[shard] = &record{state: succeeded}
	}
	for _, shard := range shardtask.ParseShards(bs.Status.FailedShards) {
		records[shard] = &record{state: failed, failure: v1alpha1.FailedTask{Shard: shard}}
	}
	for _, failure := range bs.Status.FailedTasks {
		if rec := records[failure.Shard]; rec != nil && rec.state == failed {
			rec.failure, rec.podName = failure, failure.Sandbox
		}
	}
	return records
}

// report sums up what is known of the shards 0 to replicas-1.
func report(records map[int32]*record, replicas int32) shardtask.Report {
	var r shardtask.Report
	why := reasons{}
	for shard := range replicas {
		rec := records[shard]
		switch {
		case rec == nil:
			r.Pending++
			continue
		case rec.state == succeeded:
			r.Succeeded = append(r.Succeeded, shard)
		case rec.state == failed:
			r.Failed = append(r.Failed, shard)
			if failure := rec.failure; len(r.FailedTasks) < v1alpha1.MaxFailedTasks && failure.Sandbox != "" {
				failure.Shard = shard
				r.FailedTasks = append(r.FailedTasks, failure)
			}
		case rec.stopped:
		case rec.unknown: // never of a task that is known to have ended
			r.Unknown++
		case rec.state == running:
			r.Running++
		default:
			r.Pending++
		}
		why.note(shard, rec)
	}
	ended := len(r.Succeeded) + len(r.Failed)
	r.Completed = ended == int(replicas)
	switch {
	case r.Completed && len(r.Failed) > 0:
		r.Reason, r.Message = v1alpha1.ReasonTasksFailed, fmt.Sprintf("%d of %d tasks failed", len(r.Failed), replicas)
	case r.Completed:
		r.Reason, r.Message = v1alpha1.ReasonTasksSucceeded, "all tasks have succeeded"
	default:
		r.Reason, r.Message = why.first()
		if r.Reason == "" {
			r.Reason, r.Message = v1alpha1.ReasonTasksRunning, "some tasks have not ended yet"
		}
	}
	return r
}

// reasons are why tasks do not run as they should, by reason: the first shard's
// message and how many shards there are.
type reasons map[string]*reason

type reason struct {
	message string
	count   int
}

// order of what to show first: what the user has to do something about.
var order = []string{
	v1alpha1.ReasonTaskTemplateInvalid, v1alpha1.ReasonExecutorMissing,
	v1alpha1.ReasonValuesNotReadable, v1alpha1.ReasonValuesNotFound, v1alpha1.ReasonExecutorClock,
	v1alpha1.ReasonExecutorUnreachable, v1alpha1.ReasonExecutorRefuses,
}

func (r reasons) note(shard int32, rec *record) {
	add := func(name, message string) {
		if r[name] == nil {
			r[name] = &reason{message: message}
		}
		r[name].count++
	}
	switch {
	case rec.ended() || rec.stopped:
	case rec.invalid != "":
		add(v1alpha1.ReasonTaskTemplateInvalid, rec.invalid)
	case rec.missing != "":
		add(v1alpha1.ReasonExecutorMissing, fmt.Sprintf("sandbox %s of shard %d %s", rec.podName, shard, rec.missing))
	case rec.values.Reason != "":
		add(rec.values.Reason, rec.values.Message)
	case rec.refusal.reason != "":
		add(rec.refusal.reason, rec.refusal.message)
	case rec.unknown:
		add(v1alpha1.ReasonExecutorUnreachable, fmt.Sprintf("the task executor of sandbox %s has not answered for %v", rec.podName, unknownAfter))
	}
}

func (r reasons) first() (name, message string) {
	for _, name := range order {
		if found := r[name]; found != nil {
			if found.count > 1 {
				return name, fmt.Sprintf("%s (and %d more)", found.message, found.count-1)
			}
			return name, found.message
		}
	}
	return "", ""
}
