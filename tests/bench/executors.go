package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
	executorclient "github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/server"
	"github.com/opensandbox/operator/executor/token"
)

// fleet holds the task executors of all pods of a pool: the real server, with its
// check of tokens, on each pod's own loopback address. Only the process is left out.
type fleet struct {
	executors []*executor
	// restartPod is called when a pod's executor has ended so that all containers restart.
	restartPod func(*corev1.Pod)
	// address is where they listen: the executors' port, of every address.
	address string
	calls   *switchboard
	// until ends all tasks when it is closed; where it is nil, tasks are short.
	until chan struct{}
	// requests and started count those, and tasks, since the last boot.
	requests, started atomic.Int64
	work              sync.WaitGroup
}

// executor is that of one pod.
type executor struct {
	pod     *corev1.Pod
	target  executorclient.Target
	request executorapi.TaskRequest
	// keys are whose tokens it takes: the operator's, and the floor's.
	keys   map[string]ed25519.PublicKey
	key    ed25519.PrivateKey // its own
	server *http.Server
}

// newFleet returns the executors of the pods, which boot starts.
func newFleet(pods []corev1.Pod, restartPod func(*corev1.Pod)) (*fleet, error) {
	key, err := token.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("making the floor's key: %w", err)
	}
	signer := token.NewSigner(key)
	f := &fleet{restartPod: restartPod, address: executorclient.PodAddress("0.0.0.0")}
	for i := range pods {
		x, err := newExecutor(&pods[i], signer)
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", pods[i].Name, err)
		}
		f.executors = append(f.executors, x)
	}
	return f, nil
}

func newExecutor(pod *corev1.Pod, floor *token.Signer) (*executor, error) {
	if ip := net.ParseIP(pod.Status.PodIP); !ip.IsLoopback() {
		return nil, fmt.Errorf("its address %q is not a loopback address: kwok gives such ones with --cidr=127.100.0.0/16", pod.Status.PodIP)
	}
	x := &executor{pod: pod, target: executorclient.Target{
		PodUID: string(pod.UID), Address: executorclient.PodAddress(pod.Status.PodIP), Signer: floor,
	}}
	x.request.Spec.Process.Command = taskCommand
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == v1alpha1.ExecutorContainerName {
			for _, e := range c.Env {
				var err error
				switch e.Name {
				case executorapi.EnvPublicKeys:
					x.keys, err = token.ParsePublicKeys(e.Value)
				case executorapi.EnvTLSKey:
					x.key, err = token.ParseSeed(e.Value)
				}
				if err != nil {
					return nil, err
				}
			}
		}
	}
	if x.keys == nil || x.key == nil {
		return nil, errors.New("the operator has not given it a task executor with keys")
	}
	x.target.PublicKey, _ = x.key.Public().(ed25519.PublicKey) // which it always is
	x.keys[floor.KeyID()] = floor.PublicKey()
	return x, nil
}

// boot starts all executors anew, as in pods that nobody has called yet: no
// connection is open, and the boot ids are others than the ones that callers know.
func (f *fleet) boot() error {
	f.hangUp()
	if f.calls == nil {
		var err error
		if f.calls, err = newSwitchboard(f.address); err != nil {
			return err
		}
	}
	for _, x := range f.executors {
		listener, err := server.Listen(f.calls.open(x.pod.Status.PodIP), x.key)
		if err != nil {
			return err
		}
		verifier, err := token.NewVerifier(x.keys, x.target.PodUID)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		tasks := newStandInTasks(f)
		handler := server.New(server.Config{
			Executor: tasks, Verifier: verifier, Log: slog.New(slog.DiscardHandler),
			BeforeRestart: func() error { return nil }, Exit: func() {
				tasks.boot()
				f.work.Go(func() { f.restartPod(x.pod) })
			},
		})
		x.server = handler.HTTPServer(context.Background())
		x.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.requests.Add(1)
			handler.ServeHTTP(w, r)
		})
		f.work.Go(func() { _ = x.server.Serve(listener) }) // it says that the server was closed
	}
	f.requests.Store(0)
	f.started.Store(0)
	return nil
}

// close ends all executors for good.
func (f *fleet) close() {
	f.hangUp()
	if f.calls != nil {
		_ = f.calls.listener.Close()
	}
}

// hangUp ends all executors.
func (f *fleet) hangUp() {
	for _, x := range f.executors {
		if x.server != nil {
			_ = x.server.Close()
		}
	}
	f.work.Wait()
}

// run has one executor run a task and follows it until it has succeeded, by the calls
// that the operator makes.
func (x *executor) run(ctx context.Context, c *executorclient.Client, id string) error {
	task, err := c.Start(ctx, x.target, id, x.request)
	var since executorapi.Cursor
	for err == nil && !task.State.Ended() {
		var list executorapi.TaskList
		if list, err = c.List(ctx, x.target, since, pollWait); err != nil {
			break
		}
		at := slices.IndexFunc(list.Tasks, func(t executorapi.Task) bool { return t.ID == id })
		if at < 0 {
			return fmt.Errorf("the executor knows nothing of task %s", id)
		}
		task, since = list.Tasks[at], list.Cursor()
	}
	if err == nil && task.State != executorapi.Succeeded {
		err = fmt.Errorf("task %s: %s %s", id, task.State, task.Reason)
	}
	return err
}

// runTaskFloor makes the calls of the batches of tasks in a plain parallel loop, as many
// at a time as the operator dispatches. A batch has taken until the last of its tasks is over.
func (b *bench) runTaskFloor(ctx context.Context, s scenario, round int) (sample, error) {
	if err := b.fleet.boot(); err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, roundPatience)
	defer cancel()
	c := executorclient.New(executorclient.Options{})
	defer c.Close()
	tasks := s.objects * int(s.replicas)
	errs, over := make([]error, tasks), make([]time.Duration, tasks)
	start := time.Now()
	workqueue.ParallelizeUntil(ctx, dispatches, tasks, func(i int) {
		errs[i] = b.fleet.executors[i].run(ctx, c, fmt.Sprintf("floor-%d-%d", round, i))
		over[i] = time.Since(start)
	})
	if err := errors.Join(errs...); err != nil {
		return sample{}, fmt.Errorf("floor: %w", err)
	}
	var took []time.Duration
	for batch := range slices.Chunk(over, int(s.replicas)) {
		took = append(took, slices.Max(batch))
	}
	slices.Sort(took)
	return sample{took: took, cost: float64(b.fleet.requests.Load()) / float64(tasks)}, nil
}
