package task

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/token"
)

const (
	// pollWait is how long an executor keeps a poll open when nothing changes.
	pollWait = 20 * time.Second
	// firstPause after a call that failed; it doubles up to lastPause.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
	// lastValuePause before values that a task waits for are looked for again: with what
	// nextPause adds, at most 30 s.
	lastValuePause = 20 * time.Second
	// seededSpread is over how long the executors of tasks that have ended, as the
	// status says, are asked again after a change of leaders.
	seededSpread = 10 * time.Second
	// lossPatience is how long the kubelet may take to say that a container has ended.
	lossPatience = 30 * time.Second
)

// taskID is the id of a shard's task: the same whoever asks, so that it starts once.
func taskID(bs types.UID, shard int32) string { return string(bs) + "-" + strconv.Itoa(int(shard)) }

// follower follows one executor: it has it run the task of a shard, and learns how that goes.
type follower struct {
	*Reconciler
	job     *job
	sandbox sandbox
	pause   time.Duration
	// failed: the last dispatch did; waits: for values; unsent: nobody has sent the task.
	failed, waits, unsent bool
}

// run has the executor start the task and follows it until it has ended.
func (f *follower) run(ctx context.Context, delay time.Duration) {
	if !f.sleep(ctx, delay) {
		return
	}
	for ctx.Err() == nil && !f.ended() && !f.start(ctx) {
		if !f.sleep(ctx, f.nextPause()) {
			return
		}
	}
	var since executorapi.Cursor
	pace := newPace()
	for f.sleep(ctx, pace.next(f.Clock.Now())) && !f.ended() {
		cursor, err := f.poll(ctx, since)
		if err == nil {
			since = cursor
		} else if !f.sleep(ctx, f.nextPause()) {
			return
		}
	}
}

const (
	// freePolls are polls without a pause: an honest executor answers soon twice, with
	// what is and with how it ended.
	freePolls = 5
	// steadyPoll is the time between two polls in the long run: less than an honest
	// executor takes when there is no news.
	steadyPoll = 2 * time.Second
)

// pace keeps a sandbox that poses as its executor from keeping the operator busy with
// news, however fast or slowly it tells them.
type pace struct{ limit *rate.Limiter }

func newPace() pace { return pace{rate.NewLimiter(rate.Every(steadyPoll), freePolls)} }

// next returns how long to wait before the next poll, which is to be made then.
func (p pace) next(now time.Time) time.Duration { return p.limit.ReserveN(now, 1).DelayFrom(now) }

// start asks the executor to run the task and says whether it has, or never will.
func (f *follower) start(ctx context.Context) bool {
	target, _, err := f.target(ctx, f.job.name.Namespace, f.sandbox.pod, f.sandbox.uid)
	if err != nil {
		f.noteUnless(errGone, err) // then the reconciler finds another pod
		return false
	}
	turn := group{f.job.name.Namespace, f.job.name.Name, f.try()}
	if !f.slots.take(ctx, turn) {
		return false
	}
	task, err := func() (executorapi.Task, error) {
		defer f.slots.give(turn)
		return f.dispatch(ctx, target)
	}()
	if ctx.Err() != nil {
		return false
	}
	f.failed = err != nil
	if executorclient.Reason(err) == executorapi.ProblemSpecDiffers {
		return true // it was started by an earlier version of the operator, or with earlier values: its result counts
	}
	var waits *shardtask.ValueError
	f.waits = errors.As(err, &waits)
	f.unsent = f.unsent && f.waits
	if f.waits {
		if f.sentBefore(ctx, target) {
			return true
		}
		f.change(func(rec *record) { rec.waitForValues(waits, f.Clock.Now()) })
		return f.ended()
	}
	if err != nil {
		f.noteUnless(errGone, err)
		return f.ended()
	}
	f.take(ctx, &task)
	return true
}

// sentBefore takes in what the executor tells of a task that was sent by an earlier leader, or
// by a request without an answer: that one has its values, and its result must not be lost
// because they are gone since. Once the executor is known to have none, nobody else sends one.
func (f *follower) sentBefore(ctx context.Context, target executorclient.Target) bool {
	if f.unsent {
		return false
	}
	list, err := f.Executors.List(ctx, target, executorapi.Cursor{}, 0)
	if err != nil || ctx.Err() != nil {
		return false
	}
	task := f.ownTask(list.Tasks)
	if f.unsent = task == nil; f.unsent {
		return false
	}
	f.take(ctx, task)
	return true
}

// dispatch makes the task of the shard and sends it. It is made for that alone: thousands
// of followers would keep too much of theirs while they wait.
func (f *follower) dispatch(ctx context.Context, target executorclient.Target) (executorapi.Task, error) {
	bs := &v1alpha1.BatchSandbox{}
	err := f.Client.Get(ctx, f.job.name, bs, client.UnsafeDisableDeepCopy)
	if err != nil || bs.UID != f.job.uid {
		return executorapi.Task{}, errGone
	}
	pod := types.NamespacedName{Namespace: f.job.name.Namespace, Name: f.sandbox.pod}
	spec, err := shardtask.ForShard(bs, f.sandbox.shard, f.values.For(ctx, pod, f.sandbox.uid))
	var waits *shardtask.ValueError
	if errors.As(err, &waits) {
		return executorapi.Task{}, err
	}
	if err != nil {
		f.change(func(rec *record) { rec.invalid = err.Error() })
		return executorapi.Task{}, err
	}
	request := executorapi.TaskRequest{Shard: f.sandbox.shard, Spec: spec}
	task, err := f.send(ctx, target, request)
	if executorclient.IsUnauthorized(err) { // it has restarted, and now its boot id is known
		task, err = f.send(ctx, target, request)
	}
	return task, err
}

func (f *follower) try() string {
	if f.failed {
		return laterTry
	}
	return firstTry
}

// send sends the task while nobody else may have handed the sandbox on.
func (f *follower) send(ctx context.Context, target executorclient.Target, request executorapi.TaskRequest) (executorapi.Task, error) {
	if err := f.Fresh(); err != nil {
		return executorapi.Task{}, err
	}
	task, err := f.Executors.Start(ctx, target, taskID(f.job.uid, f.sandbox.shard), request)
	countDispatch(err)
	return task, err
}

// poll waits for news of the task. It returns no more of the answer than is needed:
// thousands of followers keep it while they wait.
func (f *follower) poll(ctx context.Context, since executorapi.Cursor) (executorapi.Cursor, error) {
	list, err := f.list(ctx, since)
	if err != nil {
		return since, err
	}
	f.hear(ctx, list.Tasks)
	return list.Cursor(), nil
}

func (f *follower) list(ctx context.Context, since executorapi.Cursor) (executorapi.TaskList, error) {
	target, _, err := f.target(ctx, f.job.name.Namespace, f.sandbox.pod, f.sandbox.uid)
	if err != nil {
		f.noteUnless(errGone, err)
		return executorapi.TaskList{}, err
	}
	list, err := f.Executors.List(ctx, target, since, pollWait)
	if ctx.Err() != nil {
		return executorapi.TaskList{}, ctx.Err()
	}
	if err != nil {
		f.note(nil, err)
	}
	return list, err
}

// hear takes in what a poll has told.
func (f *follower) hear(ctx context.Context, tasks []executorapi.Task) {
	if task := f.ownTask(tasks); task != nil {
		f.take(ctx, task)
		return
	}
	f.change(func(rec *record) {
		rec.hear(f.Clock.Now())
		rec.fail(v1alpha1.ReasonTaskLost, "the task executor knows nothing of the task any more")
	})
}

// ownTask returns the task of the shard, or nil.
func (f *follower) ownTask(tasks []executorapi.Task) *executorapi.Task {
	id := taskID(f.job.uid, f.sandbox.shard)
	at := slices.IndexFunc(tasks, func(t executorapi.Task) bool { return t.ID == id })
	if at < 0 {
		return nil
	}
	return &tasks[at]
}

// take takes in what the executor told of the task, unless the task was lost with its pod:
// then the reconciler has it run again in another one. Why its launcher was lost, or why it
// ended itself, the executor cannot know. The kubelet tells it: of a launcher soon, of an
// executor before there is another one.
func (f *follower) take(ctx context.Context, task *executorapi.Task) {
	if task.State == executorapi.Failed {
		there := true
		switch task.Reason {
		case executorapi.ReasonLauncherLost:
			there = f.explainLoss(ctx, task, lossPatience)
		case executorapi.ReasonExecutorRestarted:
			there = f.explainLoss(ctx, task, 0)
		}
		if !there {
			return
		}
	}
	f.note(task, nil)
}

// note takes in an answer, or that there was none.
func (f *follower) note(task *executorapi.Task, err error) {
	now := f.Clock.Now()
	ready := f.job.isReady(f.sandbox.uid)
	f.change(func(rec *record) {
		rec.values = shardtask.ValueError{} // they were there, or it is not their turn
		switch {
		case err == nil:
			f.pause = 0
			rec.learn(task, now)
		case !rec.refused(err, now):
			rec.miss(now, ready)
		}
	})
}

func (f *follower) noteUnless(expected, err error) {
	if !errors.Is(err, expected) {
		f.note(nil, err)
	}
}

// change changes the shard's record and tells the batchsandbox reconciler when that
// is to be seen.
func (f *follower) change(apply func(*record)) {
	changed, began := false, ""
	f.job.update(f.sandbox.shard, f.sandbox.uid, func(rec *record) {
		before := *rec
		apply(rec)
		countChange(&before, rec)
		changed = before.state != rec.state || before.unknown != rec.unknown || before.refusal != rec.refusal ||
			before.invalid != rec.invalid || before.values != rec.values
		if before.ended() && rec.state == running {
			began = rec.podName
		}
	})
	if began != "" {
		f.tell(f.job, v1alpha1.EventTaskRunsAgain, fmt.Sprintf("the task of shard %d runs again in sandbox %s: the one it had run in was lost", f.sandbox.shard, began))
	}
	if changed {
		f.OnChange(f.job.name)
	}
}

// ended says that there is nothing to follow any more.
func (f *follower) ended() bool {
	over := true
	there := f.job.update(f.sandbox.shard, f.sandbox.uid, func(rec *record) { over = rec.ended() && !rec.stale || rec.invalid != "" })
	return !there || over
}

func (f *follower) nextPause() time.Duration {
	longest := lastPause
	if f.waits {
		longest = lastValuePause
	}
	f.pause = min(max(firstPause, f.pause*2), longest)
	return f.pause/2 + rand.N(f.pause) //nolint:gosec // to spread calls
}

func (f *follower) sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := f.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// errGone says that the pod, or the BatchSandbox, is not there any more or on its way out.
var errGone = errors.New("it is gone")

// errNoExecutor says that the pod has no executor, so that no task runs in it.
var errNoExecutor = errors.New("the pod has no task executor")

// errEarlier says that an earlier version of the operator has made the pod: tasks may run in
// it, and this one cannot talk to its executor.
var errEarlier = errors.New("the pod's task executor is of an earlier version")

// target returns how to reach the executor of that very pod, and the pod, which is the
// cache's own.
func (r *Reconciler) target(ctx context.Context, namespace, name string, uid types.UID) (executorclient.Target, *corev1.Pod, error) {
	pod := &corev1.Pod{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, pod, client.UnsafeDisableDeepCopy)
	if err != nil || pod.UID != uid || pod.DeletionTimestamp != nil {
		return executorclient.Target{}, nil, errGone
	}
	id := pod.Annotations[v1alpha1.AnnotationExecutorKey]
	if id == "" {
		return executorclient.Target{}, pod, errNoExecutor
	}
	signer := r.Signer(id)
	if signer == nil {
		return executorclient.Target{}, pod, fmt.Errorf("key %q of the pod's task executor is not there any more", id)
	}
	public, err := token.ParsePublicKey(pod.Annotations[v1alpha1.AnnotationExecutorTLSKey])
	if err != nil {
		return executorclient.Target{}, pod, errEarlier
	}
	if pod.Status.PodIP == "" {
		return executorclient.Target{}, pod, errors.New("the pod has no address")
	}
	return executorclient.Target{
		PodUID: string(uid), Address: executorclient.PodAddress(pod.Status.PodIP), Signer: signer, PublicKey: public,
	}, pod, nil
}
