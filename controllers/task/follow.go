package task

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
)

const (
	// pollWait is how long an executor keeps a poll open when nothing changes.
	pollWait = 20 * time.Second
	// firstPause after a call that failed; it doubles up to lastPause.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
	// seededSpread is over how long the executors of tasks that have ended, as the
	// status says, are asked again after a change of leaders.
	seededSpread = 10 * time.Second
)

// taskID is the id of a shard's task: the same whoever asks, so that it starts once.
func taskID(bs types.UID, shard int32) string { return string(bs) + "-" + strconv.Itoa(int(shard)) }

// leg is what one follower needs to know.
type leg struct {
	*Reconciler
	job     *job
	sandbox sandbox
	spec    executorapi.TaskSpec
	pause   time.Duration
	// failed: the last dispatch did, if only by a refusal that took its time.
	failed bool
}

// run has the executor start the task and follows it until it has ended.
func (l *leg) run(ctx context.Context, delay time.Duration) {
	if !l.sleep(ctx, delay) {
		return
	}
	for ctx.Err() == nil && !l.ended() && !l.start(ctx) {
		if !l.sleep(ctx, l.nextPause()) {
			return
		}
	}
	var since executorapi.Cursor
	pace := newPace()
	for l.sleep(ctx, pace.next(l.Clock.Now())) && !l.ended() {
		cursor, err := l.poll(ctx, since)
		if err == nil {
			since = cursor
		} else if !l.sleep(ctx, l.nextPause()) {
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
func (l *leg) start(ctx context.Context) bool {
	target, pod, err := l.target(ctx, l.job.name.Namespace, l.sandbox.pod, l.sandbox.uid)
	var request executorapi.TaskRequest
	if err == nil {
		request, err = requestFor(pod, l.spec)
	}
	if err != nil {
		l.noteUnless(errGone, err) // then the reconciler finds another pod
		return false
	}
	slots := []chan struct{}{l.slots}
	if l.failed {
		slots = []chan struct{}{l.job.retries, l.retries}
	}
	for i, slot := range slots {
		select {
		case slot <- struct{}{}:
		case <-ctx.Done():
			give(slots[:i])
			return false
		}
	}
	task, err := func() (executorapi.Task, error) {
		defer give(slots)
		task, err := l.send(ctx, target, request)
		if executorclient.IsUnauthorized(err) { // it has restarted, and now its boot id is known
			task, err = l.send(ctx, target, request)
		}
		return task, err
	}()
	if ctx.Err() != nil {
		return false
	}
	l.failed = err != nil
	if executorclient.Reason(err) == executorapi.ProblemSpecDiffers {
		return true // an earlier version of the operator has started it: its result counts
	}
	if err != nil {
		l.note(nil, err)
		return l.ended()
	}
	l.take(ctx, target, &task)
	return true
}

// give gives slots back.
func give(slots []chan struct{}) {
	for _, slot := range slots {
		<-slot
	}
}

// send sends the task while nobody else may have lent the sandbox on.
func (l *leg) send(ctx context.Context, target executorclient.Target, request executorapi.TaskRequest) (executorapi.Task, error) {
	if err := l.Fresh(); err != nil {
		return executorapi.Task{}, err
	}
	task, err := l.Executors.Start(ctx, target, taskID(l.job.uid, l.sandbox.shard), request)
	countDispatch(err)
	return task, err
}

// poll waits for news of the task. It returns no more of the answer than is needed:
// thousands of followers keep it while they wait.
func (l *leg) poll(ctx context.Context, since executorapi.Cursor) (executorapi.Cursor, error) {
	target, _, err := l.target(ctx, l.job.name.Namespace, l.sandbox.pod, l.sandbox.uid)
	if err != nil {
		l.noteUnless(errGone, err)
		return since, err
	}
	list, err := l.Executors.List(ctx, target, since, pollWait)
	if ctx.Err() != nil {
		return since, ctx.Err()
	}
	if err != nil {
		l.note(nil, err)
		return since, err
	}
	for i := range list.Tasks {
		if list.Tasks[i].ID == taskID(l.job.uid, l.sandbox.shard) {
			l.take(ctx, target, &list.Tasks[i])
			return list.Cursor(), nil
		}
	}
	l.change(func(k *known) {
		k.hear(l.Clock.Now())
		k.fail("TaskLost", "the task executor knows nothing of the task any more")
	})
	return list.Cursor(), nil
}

// take takes in what the executor told of the task. Of one that could not start it
// asks whether any could, unless that very task has run.
func (l *leg) take(ctx context.Context, target executorclient.Target, task *executorapi.Task) {
	begun := false
	l.job.update(l.sandbox.shard, l.sandbox.uid, func(k *known) { begun = k.begun() })
	if task.State == executorapi.Failed && task.Reason == executorapi.ReasonCannotStart && !begun {
		if info, err := l.Executors.Info(ctx, target); err == nil && !info.Supported {
			l.change(func(k *known) { k.cannot(info.Problems, l.Clock.Now()) })
			return
		}
	}
	l.note(task, nil)
}

// note takes in an answer, or that there was none.
func (l *leg) note(task *executorapi.Task, err error) {
	now := l.Clock.Now()
	ready := l.job.isReady(l.sandbox.uid)
	l.change(func(k *known) {
		switch {
		case err == nil:
			l.pause = 0
			k.learn(task, now)
		case !k.refused(err, now):
			k.miss(now, ready)
		}
	})
}

func (l *leg) noteUnless(expected, err error) {
	if !errors.Is(err, expected) {
		l.note(nil, err)
	}
}

// change changes the shard's record and tells the batchsandbox reconciler when that
// is to be seen.
func (l *leg) change(apply func(*known)) {
	changed, began := false, ""
	l.job.update(l.sandbox.shard, l.sandbox.uid, func(k *known) {
		before := *k
		apply(k)
		countChange(&before, k)
		changed = before.state != k.state || before.unknown != k.unknown || before.unsupported != k.unsupported ||
			len(before.lacking) != len(k.lacking)
		if before.ended() && k.state == running {
			began = k.podName
		}
	})
	if began != "" {
		l.tell(l.job, "TaskRunsAgain", fmt.Sprintf("the task of shard %d runs again in sandbox %s: the one it had run in was lost", l.sandbox.shard, began))
	}
	if changed {
		l.OnChange(l.job.name)
	}
}

// ended says that there is nothing to follow any more.
func (l *leg) ended() bool {
	over := true
	there := l.job.update(l.sandbox.shard, l.sandbox.uid, func(k *known) { over = k.ended() && !k.stale })
	return !there || over
}

func (l *leg) nextPause() time.Duration {
	l.pause = min(max(firstPause, l.pause*2), lastPause)
	return l.pause/2 + rand.N(l.pause) //nolint:gosec // to spread calls
}

func (l *leg) sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := l.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// errGone says that the pod is not there any more, or is on its way out.
var errGone = errors.New("the pod is gone")

// errNoExecutor says that the pod has no executor that the operator can talk to.
var errNoExecutor = errors.New("the pod has no task executor")

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
	if pod.Status.PodIP == "" {
		return executorclient.Target{}, pod, errors.New("the pod has no address")
	}
	return executorclient.Target{PodUID: string(uid), Address: executorclient.PodAddress(pod.Status.PodIP), Signer: signer}, pod, nil
}

// requestFor returns what to ask the executor of the pod for.
func requestFor(pod *corev1.Pod, spec executorapi.TaskSpec) (executorapi.TaskRequest, error) {
	request := executorapi.TaskRequest{Spec: spec}
	if len(pod.Spec.Containers) == 0 {
		return request, errors.New("the pod has no container to run tasks in")
	}
	container := &pod.Spec.Containers[0] // the cache keeps that of the tasks only
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == container.Name {
			request.ContainerID = s.ContainerID
		}
	}
	if request.ContainerID == "" {
		return request, errors.New("the container that tasks run in has no id yet")
	}
	for _, e := range container.Env {
		if e.ValueFrom == nil {
			request.FallbackEnv = append(request.FallbackEnv, executorapi.EnvVar{Name: e.Name, Value: e.Value})
		} else if e.ValueFrom.FieldRef != nil {
			if value, known := fieldOf(pod, e.ValueFrom.FieldRef.FieldPath); known {
				request.FallbackEnv = append(request.FallbackEnv, executorapi.EnvVar{Name: e.Name, Value: value})
			}
		}
	}
	return request, nil
}

// fieldOf returns a field of the pod as the downward API would.
func fieldOf(pod *corev1.Pod, path string) (string, bool) {
	switch path {
	case "metadata.name":
		return pod.Name, true
	case "metadata.namespace":
		return pod.Namespace, true
	case "metadata.uid":
		return string(pod.UID), true
	case "status.podIP":
		return pod.Status.PodIP, true
	case "spec.nodeName":
		return pod.Spec.NodeName, true
	}
	return "", false
}
