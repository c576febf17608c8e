package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	// claimsPool is what is claimed from beside the crowd.
	claimsPool = "claims"
	// tasksOfBatch is how many tasks a BatchSandbox of many tasks has.
	tasksOfBatch = 1000
	// spareFiles are open files of this program and of the operator that are no connections between
	// the operator and an executor.
	spareFiles = 300
	// tasksInterval is between two looks at how many tasks run: thousands of them are megabytes.
	tasksInterval = 250 * time.Millisecond
)

// checkedSteps are the pods of each step of the growth.
func (o *scaleOptions) checkedSteps() (steps []int, err error) {
	for text := range strings.SplitSeq(o.pods, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n <= o.batch || len(steps) > 0 && n <= steps[len(steps)-1] {
			return nil, fmt.Errorf("flag -pods: %q is not a number above -batch and the one before", text)
		}
		steps = append(steps, n)
	}
	switch most := steps[len(steps)-1]; {
	case o.batch < 1 || o.rounds < 1 || o.poolSize < 1 || o.pools < 1:
		return nil, errors.New("flags -batch, -rounds, -pool-size and -pools: must be at least 1")
	case o.tasks < 0 || o.tasks >= most-o.batch:
		return nil, errors.New("flag -tasks: must be less than the pods of the last step without those of -batch")
	}
	return steps, nil
}

// growth measures the operator with more and more pods.
func (s *scale) growth(ctx context.Context) ([]results.Table, error) {
	memory, cpu, claims := memoryTable(), restTable(s.o.rest), claimsTables(s.o)
	tables := func() []results.Table { return append([]results.Table{memory, cpu}, claims...) }
	for i, pods := range s.steps {
		last := i == len(s.steps)-1
		reserved := 0
		if last {
			reserved = s.o.tasks
		}
		took, added, err := s.populate(ctx, pods, reserved)
		if err != nil {
			return tables(), fmt.Errorf("%d pods: %w", pods, err)
		}
		if err := s.crowd.hold(ctx, pods/heldShare); err != nil {
			return tables(), fmt.Errorf("%d pods: holding a part of them: %w", pods, err)
		}
		r, err := s.atRest(ctx)
		if err != nil {
			return tables(), fmt.Errorf("%d pods: at rest: %w", pods, err)
		}
		memory.Add(nil, float64(pods), float64(len(s.crowd.sizes)+1), float64(s.crowd.held), took.Seconds(), float64(added)/took.Seconds(),
			r.leader.resident, r.leader.peak, r.leader.heap, r.leader.goroutines, r.standby.resident,
			r.memory["kube-apiserver"], r.memory["etcd"])
		cpu.Add(nil, float64(pods), r.cpu[ofLeader], r.cpu[ofStandby], r.cpu["kube-apiserver"], r.cpu["etcd"])
		for i, n := range []int{1, s.o.batch} {
			row, err := s.measureClaims(ctx, n)
			if err != nil {
				return tables(), fmt.Errorf("%d pods: claims of %d: %w", pods, n, err)
			}
			claims[i].Add(nil, append([]float64{float64(pods)}, row...)...)
		}
		fmt.Fprintf(os.Stderr, "measured %d pods\n", pods)
	}
	if s.o.tasks == 0 {
		return tables(), nil
	}
	tasks, err := s.measureManyTasks(ctx)
	return append(tables(), tasks), err
}

// populate has the cluster hold so many pods in all, and of these the reserved ones for tasks. It
// returns how long that took and how many pods were added.
func (s *scale) populate(ctx context.Context, pods, reserved int) (took time.Duration, added int, err error) {
	if _, _, err := s.pair(ctx); err != nil {
		return 0, 0, err
	}
	before := s.crowd.pods()
	sizes := spread(pods-s.o.batch-reserved, s.o.poolSize, s.o.pools-1)
	if reserved > 0 {
		sizes[tasksPool] = int32(reserved)
	}
	start := time.Now()
	if err := s.fill(ctx, []poolSize{{name: claimsPool, size: int32(s.o.batch)}}); err != nil {
		return 0, 0, err
	}
	if before == 0 {
		added = s.o.batch
	}
	if _, err := s.crowd.grow(ctx, sizes); err != nil {
		return 0, 0, err
	}
	return time.Since(start), added + s.crowd.pods() - before, nil
}

// measureClaims returns the median and the worst of the operator and of the floor, and the median
// of the ratios.
func (s *scale) measureClaims(ctx context.Context, n int) ([]float64, error) {
	claim := scenario{name: fmt.Sprintf("1 batch of %d", n), pool: claimsPool, objects: 1, replicas: int32(n), floor: (*bench).runFloor}
	operator, floor, err := s.measure(ctx, claim, s.o.rounds)
	if err != nil {
		return nil, err
	}
	var ours, least, ratios []float64
	for i := range operator {
		ours, least = append(ours, ms(operator[i].took[0])), append(least, ms(floor[i].took[0]))
		ratios = append(ratios, ours[i]/least[i])
	}
	return []float64{quantile(ours, 0.5), slices.Max(ours), quantile(least, 0.5), slices.Max(least), quantile(ratios, 0.5)}, nil
}

// measureManyTasks has many tasks run at a time, and then end all at once.
func (s *scale) measureManyTasks(ctx context.Context) (results.Table, error) {
	table := tasksTable()
	if err := enoughFiles(s.o.tasks); err != nil {
		return table, err
	}
	pods, err := s.crowd.startedPods(ctx, poolSize{name: tasksPool, size: int32(s.o.tasks)})
	if err != nil {
		return table, err
	}
	if err := s.startExecutors(ctx, pods); err != nil {
		return table, err
	}
	start := time.Now()
	if err := s.crowd.runTasks(ctx, s.o.tasks); err != nil {
		return table, err
	}
	if err := s.crowd.untilTasks(ctx, func(status *v1alpha1.BatchSandboxStatus) int32 { return status.TaskRunning }); err != nil {
		return table, fmt.Errorf("starting %d tasks: %w", s.o.tasks, err)
	}
	started := time.Since(start)
	r, err := s.atRest(ctx)
	if err != nil {
		return table, err
	}
	start = time.Now()
	close(s.fleet.until)
	if err := s.crowd.untilTasks(ctx, func(status *v1alpha1.BatchSandboxStatus) int32 { return status.TaskSucceed }); err != nil {
		return table, fmt.Errorf("ending %d tasks: %w", s.o.tasks, err)
	}
	table.Add(nil, float64(s.o.tasks), float64(s.crowd.pods()+s.o.batch), started.Seconds(), time.Since(start).Seconds(),
		r.leader.resident, r.leader.peak, r.leader.heap, r.leader.goroutines, r.standby.resident,
		r.cpu[ofLeader], r.cpu[ofStandby], r.cpu["kube-apiserver"])
	return table, s.endTasks(ctx)
}

// enoughFiles says how many open files this program and the operator need for so many tasks.
func enoughFiles(tasks int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("asking for the limit of open files: %w", err)
	}
	if need := uint64(tasks + spareFiles); limit.Max < need {
		return fmt.Errorf("%d tasks need %d open files in the operator, and the limit is %d (ulimit -n)", tasks, need, limit.Max)
	}
	return nil
}

// startExecutors starts the executors of these pods, whose tasks run until the fleet ends them.
func (s *scale) startExecutors(ctx context.Context, pods []corev1.Pod) (err error) {
	if s.fleet, err = newFleet(pods, s.restartPod(ctx)); err != nil {
		return err
	}
	s.fleet.until = make(chan struct{})
	return s.fleet.boot()
}

// endTasks takes the tasks and their executors away.
func (s *scale) endTasks(ctx context.Context) error {
	where, labels := client.InNamespace(s.crowd.namespace), client.MatchingLabels{ranLabel: ""}
	err := s.api.DeleteAllOf(ctx, &v1alpha1.BatchSandbox{}, where, labels)
	if err == nil {
		err = s.crowd.untilNone(ctx, where, labels)
	}
	s.fleet.close()
	s.fleet = nil
	return err
}

// ranLabel is on BatchSandboxes with tasks.
const ranLabel = "bench.opensandbox.io/tasks"

// runTasks creates BatchSandboxes with so many tasks.
func (c *crowd) runTasks(ctx context.Context, tasks int) error {
	for from := 0; from < tasks; from += tasksOfBatch {
		some := scenario{pool: tasksPool, replicas: int32(min(tasksOfBatch, tasks-from)), tasks: true}
		bs := &v1alpha1.BatchSandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: fmt.Sprintf("tasks-%d", from), Labels: map[string]string{ranLabel: ""}},
			Spec:       some.spec(0),
		}
		bs.Spec.Replicas = ptr.To(some.replicas)
		if err := c.api.Create(ctx, bs); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) withTasks(ctx context.Context) ([]v1alpha1.BatchSandbox, error) {
	var list v1alpha1.BatchSandboxList
	err := c.api.List(ctx, &list, client.InNamespace(c.namespace), client.MatchingLabels{ranLabel: ""})
	return list.Items, err
}

// untilTasks waits until all tasks are as counted.
func (c *crowd) untilTasks(ctx context.Context, count func(*v1alpha1.BatchSandboxStatus) int32) error {
	return wait.PollUntilContextTimeout(ctx, tasksInterval, fillPatience, true, func(ctx context.Context) (bool, error) {
		list, err := c.withTasks(ctx)
		missing := func(bs v1alpha1.BatchSandbox) bool { return count(&bs.Status) != bs.DesiredReplicas() }
		return err == nil && !slices.ContainsFunc(list, missing), err
	})
}
