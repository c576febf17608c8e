package task

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/allocation"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/shardtask"
	"github.com/opensandbox/operator/controllers/wakequeue"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
	executorserver "github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/token"
)

const (
	patience = 3 * time.Minute // on a busy machine
	poll     = time.Millisecond
)

// bench is one sandbox with what answers on its executor's port. The pod stands in a
// client without a server: what is tested is what is made of the pod's status, which
// here only the test writes.
type bench struct {
	*Reconciler
	bs  *v1alpha1.BatchSandbox
	pod *corev1.Pod
}

// listenAsExecutor listens on the executors' port of a loopback address that no other
// test uses, of this process or of another.
func listenAsExecutor(t *testing.T) (net.Listener, string) {
	t.Helper()
	for {
		var config net.ListenConfig
		ip := fmt.Sprintf("127.77.%d.%d", rand.IntN(256), 1+rand.IntN(254))
		listener, err := config.Listen(t.Context(), "tcp", executorclient.PodAddress(ip))
		if !errors.Is(err, syscall.EADDRINUSE) {
			require.NoError(t, err)
			return listener, ip
		}
	}
}

// newBench has handle answer what is asked of the executor.
func newBench(t *testing.T, handle func(*bench, http.ResponseWriter, *http.Request)) *bench {
	t.Helper()
	listener, ip := listenAsExecutor(t)
	podKey, err := token.GenerateKey()
	require.NoError(t, err)
	b := newUnanswered(t, aPod(ip, podKey))
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == executorapi.HealthPath {
			w.Header().Set(executorapi.HeaderBootID, "boot")
			return
		}
		handle(b, w, r)
	})}
	secured, err := executorserver.Listen(listener, podKey)
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(secured) })
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		serving.Wait()
		b.jobs.drop(client.ObjectKeyFromObject(b.bs))
		b.work.Wait()
	})
	return b
}

// newUnanswered has nobody listen where the pod's executor should.
func newUnanswered(t *testing.T, pod *corev1.Pod) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, clientgoscheme.AddToScheme(scheme))
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	b := &bench{pod: pod}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(b.pod).WithStatusSubresource(b.pod).Build()
	key, err := token.GenerateKey()
	require.NoError(t, err)
	signer := token.NewSigner(key)
	b.Reconciler, err = New(t.Context(), Config{
		Client: api, Live: api, Ledger: ledger.New(ledger.Hooks{}), Wakes: &wakequeue.Queue{}, Executors: executorclient.New(executorclient.Options{}),
		Signer: func(string) *token.Signer { return signer }, Fresh: func() error { return nil },
		WaitOpen: func(context.Context) error { return nil }, OnChange: func(types.NamespacedName) {}, OnSettled: func(types.NamespacedName) {},
		Recorder: events.NewFakeRecorder(100), Clock: clock.RealClock{}, Dispatches: 32,
		OwnSecrets: []types.NamespacedName{{Namespace: "system", Name: "keys"}},
	})
	require.NoError(t, err)
	b.bs = &v1alpha1.BatchSandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "bs", UID: "u", ResourceVersion: "7"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(1)), PoolRef: "pool", TaskTemplate: &v1alpha1.TaskTemplate{
			Spec: v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Command: []string{"true"}}}}},
	}
	return b
}

func aPod(ip string, key ed25519.PrivateKey) *corev1.Pod {
	public, _ := key.Public().(ed25519.PublicKey)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid-p", Annotations: map[string]string{
			v1alpha1.AnnotationExecutorKey: "k", v1alpha1.AnnotationExecutorTLSKey: token.FormatPublicKey(public),
		}},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: v1alpha1.ExecutorContainerName, Env: []corev1.EnvVar{{Name: executorapi.EnvTLSKey}},
				RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), RestartPolicyRules: podtemplate.RestartRules(),
			}},
			Containers: []corev1.Container{{Name: "main"}},
		},
		Status: corev1.PodStatus{
			PodIP: ip,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue},
				{Type: corev1.AllContainersRestarting, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(now)},
			},
			InitContainerStatuses: []corev1.ContainerStatus{{Name: v1alpha1.ExecutorContainerName, ContainerID: "executor-0"}},
			ContainerStatuses:     []corev1.ContainerStatus{{Name: "main", ContainerID: "main-0"}},
		},
	}
}

// renew gives every container another id; all says that the kubelet restarted them at once.
func (b *bench) renew(t *testing.T, all bool) {
	pod := &corev1.Pod{}
	if err := b.Client.Get(context.Background(), client.ObjectKeyFromObject(b.pod), pod); err != nil {
		t.Error(err)
		return
	}
	pod.Status.InitContainerStatuses[0].ContainerID += "1"
	pod.Status.ContainerStatuses[0].ContainerID += "1"
	if all {
		pod.Status.Conditions[1].LastTransitionTime = metav1.NewTime(pod.Status.Conditions[1].LastTransitionTime.Add(time.Minute))
	}
	if err := b.Client.Status().Update(context.Background(), pod); err != nil {
		t.Error(err)
	}
	b.changes.note(pod.UID)
}

// follow has the executor run the task.
func (b *bench) follow(t *testing.T) {
	t.Helper()
	stored := b.bs.DeepCopy()
	stored.ResourceVersion = ""
	require.NoError(t, b.Client.Create(t.Context(), stored))
	b.bs.Spec.PoolRef = ""
	b.apply(b.bs, b.jobs.of(b.bs), map[int32]sandbox{0: {pod: "p", uid: "uid-p", ready: true}})
}

// stopped gives the sandbox up and returns the outcome.
func (b *bench) stopped(t *testing.T, restart bool) shardtask.Stopping {
	t.Helper()
	outcome := func() shardtask.Stopping { return b.Stop(b.bs, b.pod.Name, b.pod.UID, restart) }
	require.Eventually(t, func() bool { return outcome() != shardtask.StillStopping }, patience, poll)
	return outcome()
}

var exiting = executorapi.ResetAnswer{Exiting: true}

func TestARestartIsBelievedWhenTheKubeletRestartedAllAtOnce(t *testing.T) {
	t.Parallel()
	for _, all := range []bool{true, false} {
		t.Run(fmt.Sprint(all), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(exiting)
				b.renew(t, all)
			})
			if all {
				require.Equal(t, shardtask.Restarted, b.stopped(t, true))
				return
			}
			time := clocktesting.NewFakeClock(now)
			b.Clock = time
			require.Equal(t, shardtask.StillStopping, b.Stop(b.bs, b.pod.Name, b.pod.UID, true))
			require.Eventually(t, time.HasWaiters, patience, poll)
			time.Step(restartPatience)
			require.Equal(t, shardtask.Stopped, b.stopped(t, true))
		})
	}
}

// A debug container that was added meanwhile is there still, and sees the next owner.
func TestAPodIsLookedAtAgainAfterItsRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
		pod := &corev1.Pod{}
		assert.NoError(t, b.Client.Get(context.Background(), client.ObjectKeyFromObject(b.pod), pod))
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
		assert.NoError(t, b.Client.Update(context.Background(), pod))
		_ = json.NewEncoder(w).Encode(exiting)
		b.renew(t, true)
	})
	require.Equal(t, shardtask.Stopped, b.stopped(t, true))
}

func TestNoTaskIsDispatchedWithoutAFreshLease(t *testing.T) {
	t.Parallel()
	var starts atomic.Int64
	b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
		starts.Add(1)
		_ = json.NewEncoder(w).Encode(executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Succeeded})
	})
	var fresh atomic.Bool
	b.Fresh = func() error {
		if !fresh.Load() {
			return errors.New("the lease is not fresh")
		}
		return nil
	}
	time := clocktesting.NewFakeClock(now)
	b.Clock = time
	b.follow(t)
	require.Eventually(t, func() bool { return starts.Load() > 0 || time.HasWaiters() }, patience, poll)
	require.Zero(t, starts.Load(), "another leader may be at work")
	fresh.Store(true)
	time.Step(lastPause)
	require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
}

// What it has in its hands could otherwise start after the reset, in the next owner's time.
func TestAnExecutorIsResetWhenItsFollowerHasEnded(t *testing.T) {
	key, err := token.GenerateKey()
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		b := newUnanswered(t, aPod("127.0.0.1", key))
		var asked atomic.Int64 // before a reset is sent
		b.Fresh = func() error {
			asked.Add(1)
			return errors.New("the lease is not fresh")
		}
		j := b.jobs.of(b.bs)
		leaves := &following{pod: b.pod.UID, cancel: func() {}, done: make(chan struct{})}
		j.followers[0] = leaves
		b.Stop(b.bs, b.pod.Name, b.pod.UID, false)
		synctest.Wait()
		require.Zero(t, asked.Load(), "it has not ended")
		close(leaves.done)
		synctest.Wait()
		require.Equal(t, int64(1), asked.Load())
		b.jobs.drop(j.name)
		b.work.Wait()
	})
}

func TestARestartThatSomebodyElseMayHaveAskedForIsNotBelieved(t *testing.T) {
	t.Parallel()
	var resets atomic.Int32
	b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
		if resets.Add(1) == 1 {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(executorapi.Problem{Status: http.StatusConflict, Reason: executorapi.ProblemResetting})
			b.renew(t, true)
			return
		}
		_ = json.NewEncoder(w).Encode(executorapi.ResetAnswer{})
	})
	require.Equal(t, shardtask.Stopped, b.stopped(t, true))
}

func TestAnExecutorThatRestartedIsAskedAgainOnlyWithAFreshLease(t *testing.T) {
	t.Parallel()
	var resets atomic.Int32
	b := newBench(t, func(_ *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set(executorapi.HeaderBootID, "first")
			_ = json.NewEncoder(w).Encode(executorapi.TaskList{})
			return
		}
		w.Header().Set(executorapi.HeaderBootID, "second")
		if resets.Add(1) == 1 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(executorapi.ResetAnswer{})
	})
	target, _, err := b.target(t.Context(), "ns", "p", "uid-p")
	require.NoError(t, err)
	_, err = b.Executors.List(t.Context(), target, executorapi.Cursor{}, 0) // so that a boot id is known
	require.NoError(t, err)
	lost := errors.New("the lease is not fresh")
	b.Fresh = func() error {
		if resets.Load() > 0 {
			return lost
		}
		return nil
	}
	require.True(t, executorclient.IsUnauthorized(b.reset(t.Context(), "ns", "p", "uid-p", executorapi.ResetRequest{}, resetWait)))
	require.Equal(t, int32(1), resets.Load())
	require.ErrorIs(t, b.reset(t.Context(), "ns", "p", "uid-p", executorapi.ResetRequest{}, resetWait), lost)
	require.Equal(t, int32(1), resets.Load())
}

func TestWhatWasGivenUpIsNotFollowed(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			t.Error("a task was started in a sandbox that is not the BatchSandbox' any more")
		}
		_ = json.NewEncoder(w).Encode(exiting)
	})
	j := b.jobs.of(b.bs)
	before := map[int32]sandbox{0: {pod: "p", uid: "uid-p", ready: true}}
	require.Equal(t, shardtask.Stopped, b.stopped(t, false))
	b.Freed(b.bs, []string{"p"})
	b.apply(b.bs, j, before) // the ledger does not hold the pod
	require.Empty(t, j.followers)
}

func TestASandboxThatComesBackToItsShardRunsTheTaskAgain(t *testing.T) {
	b := newBench(t, func(_ *bench, w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(exiting) })
	j := b.jobs.of(b.bs)
	j.records[0] = &record{pod: "uid-p", podName: "p", state: succeeded}
	require.Equal(t, shardtask.Stopped, b.stopped(t, false))
	b.Freed(b.bs, []string{"p"})
	require.Equal(t, int32(1), b.Report(b.bs).Pending)

	b.bs.Spec.TaskResourcePolicyWhenCompleted = v1alpha1.TaskResourceRelease
	j.records[0] = &record{pod: "uid-p", podName: "p", state: succeeded}
	b.Freed(b.bs, []string{"p"})
	require.Equal(t, []int32{0}, b.Report(b.bs).Succeeded, "this result is for good")
}

func TestNothingIsKeptOfABatchSandboxThatIsGone(t *testing.T) {
	b := newBench(t, func(*bench, http.ResponseWriter, *http.Request) {})
	b.jobs.of(b.bs)
	_, err := b.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(b.bs)})
	require.NoError(t, err)
	b.Freed(b.bs, []string{"p"}) // the answer of the last write comes late
	require.Empty(t, b.jobs.byName)

	newer := b.bs.DeepCopy()
	newer.UID, newer.ResourceVersion = "newer", "8" // in the same second, it may be
	live := b.jobs.of(newer)
	b.Report(b.bs) // of an old copy
	require.Same(t, live, b.jobs.of(newer))
}

func TestTheTaskOfASandboxThatHasEndedHasFailed(t *testing.T) {
	b := newBench(t, func(_ *bench, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	b.bs.Finalizers = []string{v1alpha1.FinalizerTaskCleanup, v1alpha1.FinalizerPoolAllocation}
	b.bs.Annotations = map[string]string{v1alpha1.AnnotationAllocStatus: `{"pods":["p"]}`}
	b.bs.ResourceVersion = ""
	require.NoError(t, b.Client.Create(t.Context(), b.bs))
	b.Ledger.SetPool(ledger.Key{Namespace: "ns", Name: "pool"}, "pool-uid", "r", true)
	observe := func() {
		b.Ledger.Observe(ledger.Key{Namespace: "ns", Name: "pool"}, podfeed.Facts(b.pod, "pool-uid"))
	}
	observe()
	require.Len(t, b.Ledger.Claim(ledger.Key{Namespace: "ns", Name: "pool"}, allocation.OwnerOf(b.bs), []int32{0}), 1)
	j := b.jobs.of(b.bs)
	j.records[0] = &record{pod: "uid-p", podName: "p", state: running}

	b.pod.Status.Phase = corev1.PodSucceeded
	require.NoError(t, b.Client.Status().Update(t.Context(), b.pod))
	observe()
	_, err := b.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(b.bs)})
	require.NoError(t, err)
	report := b.Report(b.bs)
	require.Equal(t, []int32{0}, report.Failed)
	require.Equal(t, v1alpha1.ReasonSandboxEnded, report.FailedTasks[0].Reason)
	require.Equal(t, "p", report.FailedTasks[0].Sandbox)
}

// An answer that was under way when the sandbox was seen to have ended comes too late.
func TestALateAnswerDoesNotUndoTheEndOfASandbox(t *testing.T) {
	for _, answer := range []executorapi.TaskState{executorapi.Running, executorapi.Succeeded} {
		bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "b"}}
		j := (&jobs{}).of(bs)
		j.records[0] = &record{pod: "p", podName: "p", state: running}
		j.sandboxEnded(sandbox{shard: 0, pod: "p", uid: "p", ended: true})
		j.update(0, "p", func(rec *record) { rec.learn(&executorapi.Task{State: answer}, time.Now()) })
		require.Equal(t, []int32{0}, j.report(1).Failed, "the executor said %s", answer)
	}
}

func TestAFollowerEndsWithItsRecord(t *testing.T) {
	b := newBench(t, func(_ *bench, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	b.follow(t)
	j := b.jobs.of(b.bs)
	f := j.followers[0]
	require.NotNil(t, f)
	b.bs.Spec.Replicas = ptr.To(int32(0))
	b.apply(b.bs, j, nil)
	select {
	case <-f.done:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
}

func TestASandboxThatPosesAsItsExecutorIsPolledAtAPace(t *testing.T) {
	t.Parallel()
	var polls atomic.Int64
	b := newBench(t, func(b *bench, w http.ResponseWriter, r *http.Request) {
		task := executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Running}
		if r.Method == http.MethodPut {
			_ = json.NewEncoder(w).Encode(task)
			return
		}
		_ = json.NewEncoder(w).Encode(executorapi.TaskList{BootID: "b", Version: polls.Add(1), Tasks: []executorapi.Task{task}})
	})
	time := clocktesting.NewFakeClock(now)
	b.Clock = time
	b.follow(t)
	for i := range int64(3) {
		require.Eventually(t, time.HasWaiters, patience, poll)
		require.Equal(t, freePolls+i, polls.Load())
		time.Step(steadyPoll)
	}
}

// takeAll takes all slots that a group may have, and returns how many.
func (b *bench) takeAll(g group) int {
	b.slots.mu.Lock()
	defer b.slots.mu.Unlock()
	for n := 0; ; n++ {
		if t := b.slots.turns.wait(g); b.slots.turns.next() == nil {
			b.slots.turns.leave(t)
			return n
		}
	}
}

// Tries after one that failed leave room for first tries, and those for them.
func TestAnExecutorThatFailsKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w http.ResponseWriter){
		"it does not answer": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"it refuses":         func(w http.ResponseWriter) { w.WriteHeader(http.StatusConflict) },
	} {
		t.Run(name, func(t *testing.T) {
			var starts atomic.Int64
			b := newBench(t, func(b *bench, w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut && starts.Add(1) == 1 {
					fail(w)
					return
				}
				_ = json.NewEncoder(w).Encode(executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Succeeded})
			})
			time := clocktesting.NewFakeClock(now)
			b.Clock = time
			later, first := group{"ns", "bs", laterTry}, group{"ns", "bs", firstTry}
			n := b.takeAll(later)
			b.follow(t)
			require.Eventually(t, time.HasWaiters, patience, poll)
			require.Equal(t, int64(1), starts.Load(), "the first try does not wait for them")
			for range n {
				b.slots.give(later)
			}
			b.takeAll(first)
			time.Step(lastPause)
			require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll, "nor does it wait for the others when it has failed")
		})
	}
}

func TestPollsAreFreeAtFirstAndAgainAfterAWhile(t *testing.T) {
	p := newPace()
	at := now
	for range freePolls {
		require.Zero(t, p.next(at))
	}
	for i := range 3 {
		require.Equal(t, steadyPoll, p.next(at), "poll %d", i)
		at = at.Add(steadyPoll)
	}
	at = at.Add(freePolls * steadyPoll)
	require.Zero(t, p.next(at))
}

// The executor learns that its launcher is lost before the kubelet says why.
func TestWhyALauncherWasLostTheStatusOfThePodTells(t *testing.T) {
	t.Parallel()
	ended := func(reason string, at time.Time) *corev1.ContainerStateTerminated {
		return &corev1.ContainerStateTerminated{Reason: reason, ExitCode: 137, FinishedAt: metav1.NewTime(at)}
	}
	for name, test := range map[string]struct {
		change func(*corev1.ContainerStatus)
		want   string
	}{
		"its container was killed for memory": {func(s *corev1.ContainerStatus) {
			s.LastTerminationState.Terminated = ended("OOMKilled", now.Add(time.Minute))
		}, executorapi.ReasonOOMKilled},
		"its container has restarted": {func(s *corev1.ContainerStatus) {
			s.LastTerminationState.Terminated = ended("Error", now.Add(time.Minute))
		}, v1alpha1.ReasonSandboxRestarted},
		"its container is down":  {func(s *corev1.ContainerStatus) { s.State.Terminated = ended("Completed", now.Add(time.Minute)) }, v1alpha1.ReasonSandboxRestarted},
		"within the same second": {func(s *corev1.ContainerStatus) { s.State.Terminated = ended("Error", now) }, v1alpha1.ReasonSandboxRestarted},
		"its container had restarted before": {func(s *corev1.ContainerStatus) {
			s.LastTerminationState.Terminated = ended("Error", now.Add(-time.Minute))
		}, executorapi.ReasonLauncherLost},
		"another container has restarted": {func(s *corev1.ContainerStatus) {
			s.Name, s.LastTerminationState.Terminated = "sidecar", ended("Error", now.Add(time.Minute))
		}, executorapi.ReasonLauncherLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started := now.Add(500 * time.Millisecond)
			b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
				task := executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Failed, Reason: executorapi.ReasonLauncherLost, StartedAt: &started}
				_ = json.NewEncoder(w).Encode(task)
			})
			clock := clocktesting.NewFakeClock(now)
			b.Clock = clock
			b.follow(t)
			require.Eventually(t, clock.HasWaiters, patience, poll, "it is waited for")
			require.False(t, b.Report(b.bs).Completed)
			pod := b.pod.DeepCopy()
			require.NoError(t, b.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
			test.change(&pod.Status.ContainerStatuses[0])
			require.NoError(t, b.Client.Status().Update(t.Context(), pod))
			b.changes.note(pod.UID)
			if test.want == executorapi.ReasonLauncherLost {
				clock.Step(lossPatience)
			}
			require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
			require.Equal(t, test.want, b.Report(b.bs).FailedTasks[0].Reason)
		})
	}
}

func TestATaskThatIsLostWithItsPodHasNotFailed(t *testing.T) {
	t.Parallel()
	remove := func(b *bench, pod *corev1.Pod) error { return b.Client.Delete(context.Background(), pod) }
	for name, test := range map[string]struct {
		reason string
		lose   func(*bench, *corev1.Pod) error
	}{
		"a sandbox that is deleted":   {executorapi.ReasonLauncherLost, remove},
		"an executor that is deleted": {executorapi.ReasonExecutorRestarted, remove},
		"an evicted sandbox": {executorapi.ReasonLauncherLost, func(b *bench, pod *corev1.Pod) error {
			pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, "Evicted"
			pod.Status.ContainerStatuses[0].State.Terminated = &corev1.ContainerStateTerminated{Reason: "Error", FinishedAt: metav1.NewTime(now.Add(time.Minute))}
			return b.Client.Status().Update(context.Background(), pod)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(*bench, http.ResponseWriter, *http.Request) { t.Error("it is asked for nothing") })
			pod := b.pod.DeepCopy()
			require.NoError(t, b.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
			pod.Finalizers = []string{"example.com/kept"}
			require.NoError(t, b.Client.Update(t.Context(), pod))
			require.NoError(t, test.lose(b, pod))
			b.bs.Spec.PoolRef = ""
			f := follower{Reconciler: b.Reconciler, job: b.jobs.of(b.bs), sandbox: sandbox{pod: "p", uid: "uid-p", ready: true}}
			f.job.records[0] = &record{pod: "uid-p", podName: "p", state: running}
			f.take(t.Context(), &executorapi.Task{State: executorapi.Failed, Reason: test.reason, StartedAt: &now})
			require.Equal(t, running, f.job.records[0].state)
			require.False(t, b.Report(b.bs).Completed, "it runs again in another sandbox")
		})
	}
}

// Tasks that this version cannot stop may run in it.
func TestASandboxOfAnEarlierVersionIsGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(*bench, http.ResponseWriter, *http.Request) { t.Error("it is asked for nothing") })
	pod := b.pod.DeepCopy()
	require.NoError(t, b.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
	delete(pod.Annotations, v1alpha1.AnnotationExecutorTLSKey)
	require.NoError(t, b.Client.Update(t.Context(), pod))
	require.Equal(t, shardtask.Unstoppable, b.end(t.Context(), "ns", "p", "uid-p", false, 0))
	require.Contains(t, missingOf(pod), "earlier version")
}

func TestASandboxIsNotGivenUpWhileItsPostStopHookMayRun(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *bench, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(executorapi.Problem{Status: http.StatusConflict, Reason: executorapi.ProblemResetting})
	})
	time := clocktesting.NewFakeClock(now)
	b.Clock = time
	b.bs.Spec.TaskTemplate.Spec.Process.Lifecycle = &v1alpha1.ProcessLifecycle{PostStop: &v1alpha1.LifecycleHook{TimeoutSeconds: ptr.To(int64(600))}}
	require.Equal(t, shardtask.StillStopping, b.Stop(b.bs, b.pod.Name, b.pod.UID, false))
	require.Eventually(t, time.HasWaiters, patience, poll)
	time.Step(2 * stopPatience)
	require.Eventually(t, time.HasWaiters, patience, poll, "it asks again")
	require.Equal(t, shardtask.StillStopping, b.Stop(b.bs, b.pod.Name, b.pod.UID, false))
	time.Step(10 * stopPatience)
	require.Equal(t, shardtask.Unstoppable, b.stopped(t, false))
}

// In gVisor the memory limit is the pod's, and all of its containers end together.
func TestWhyAnExecutorRestartedTheStatusOfThePodTells(t *testing.T) {
	t.Parallel()
	started := now.Add(500 * time.Millisecond)
	for name, test := range map[string]struct {
		sandbox, executor string
		ended             time.Duration // after now
		want              string
	}{
		"the sandbox container was killed with it":               {"OOMKilled", "Error", time.Minute, executorapi.ReasonOOMKilled},
		"the sandbox container had been killed before":           {"OOMKilled", "OOMKilled", -time.Minute, executorapi.ReasonExecutorRestarted},
		"the sandbox container was started too early and failed": {"StartError", "OOMKilled", time.Minute, executorapi.ReasonOOMKilled},
		"the sandbox container ended, and the executor with it":  {"Error", "Error", time.Minute, v1alpha1.ReasonSandboxRestarted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(b *bench, w http.ResponseWriter, _ *http.Request) {
				task := executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Failed, Reason: executorapi.ReasonExecutorRestarted, StartedAt: &started}
				_ = json.NewEncoder(w).Encode(task)
			})
			pod := b.pod.DeepCopy()
			require.NoError(t, b.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
			ended := corev1.ContainerStateTerminated{ExitCode: 128, FinishedAt: metav1.NewTime(now.Add(test.ended))}
			for status, reason := range map[*corev1.ContainerStatus]string{
				&pod.Status.ContainerStatuses[0]: test.sandbox, &pod.Status.InitContainerStatuses[0]: test.executor,
			} {
				status.LastTerminationState.Terminated = ended.DeepCopy()
				status.LastTerminationState.Terminated.Reason = reason
			}
			require.NoError(t, b.Client.Status().Update(t.Context(), pod))
			b.follow(t)
			require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
			require.Equal(t, test.want, b.Report(b.bs).FailedTasks[0].Reason)
		})
	}
}

func TestAClusterThatRefusesTheRestartRuleKeepsNone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		refusal error
		wrong   bool
	}{
		"as 1.35 does":   {apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Pod").GroupKind(), "p", nil), false},
		"without rights": {apierrors.NewForbidden(corev1.Resource("pods"), "p", nil), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
				Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
					return test.refusal
				},
			}).Build()
			kept, err := RestartRulesKept(t.Context(), api, "")
			require.False(t, kept)
			require.Equal(t, test.wrong, err != nil, "%v", err)
		})
	}
}

func TestThatAnExecutorTakesNoTaskIsToldOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(*bench, http.ResponseWriter, *http.Request) { t.Error("it is asked for nothing") })
	told := 0
	b.OnChange = func(types.NamespacedName) { told++ }
	f := follower{Reconciler: b.Reconciler, job: b.jobs.of(b.bs), sandbox: sandbox{pod: "p", uid: "uid-p", ready: true}}
	f.job.records[0] = &record{pod: "uid-p", podName: "p"}
	for range 3 {
		f.note(nil, &executorclient.Error{Status: 503, Problem: executorapi.Problem{Reason: executorapi.ProblemNoLauncher, Detail: "no launcher is there"}})
	}
	require.Equal(t, 1, told)
	require.Equal(t, v1alpha1.ReasonExecutorRefuses, b.Report(b.bs).Reason)
}
