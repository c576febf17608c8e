package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/tests/bench/results"
)

const (
	// dispatches is how many tasks the operator dispatches at a time by default.
	dispatches = 256
	// pollWait of the floor's long polls, as the operator's.
	pollWait = 20 * time.Second

	tasksPool = "tasks"
)

var (
	taskCommand = []string{"true"}
	deployment  = client.ObjectKey{Namespace: "opensandbox-system", Name: "opensandbox-controller-manager"}
)

// withTasks is the part that runs tasks.
func (o *options) withTasks() ([]part, error) {
	sizes, err := parseBatches("tasks", o.tasks)
	if err != nil || len(sizes) == 0 {
		return nil, err
	}
	var plain []scenario
	for _, n := range sizes {
		plain = append(plain, scenario{name: n.of(" tasks"), pool: tasksPool, objects: n.objects, replicas: n.replicas, tasks: true, floor: (*bench).runTaskFloor})
	}
	largest := slices.MaxFunc(sizes, func(a, b batches) int { return cmp.Compare(a.replicas, b.replicas) }).replicas
	values := scenario{name: fmt.Sprintf("%d tasks with a value and a file", largest), pool: tasksPool, objects: 1, replicas: largest, tasks: true, values: true, floor: (*bench).runPlain}
	return []part{func(ctx context.Context, b *bench) (tables []results.Table, err error) {
		restore, err := b.startFleet(ctx, o.manager, poolSize{name: tasksPool, size: most(sizes)})
		defer func() { err = errors.Join(err, restore()) }()
		if err == nil {
			err = b.createValues(ctx)
		}
		if err != nil {
			return nil, err
		}
		table, err := b.compare(ctx, ofTasks, plain, o.rounds)
		tables = append(tables, table)
		if err != nil {
			return tables, err
		}
		table, err = b.compare(ctx, ofValues, []scenario{values}, o.rounds)
		return append(tables, table), err
	}}, nil
}

// startFleet makes what tasks run on, and what restarts pods. Executors listen on loopback addresses of this machine,
// which a pod cannot reach: the operator's program runs here, until what is returned is called.
func (b *bench) startFleet(ctx context.Context, program string, pool poolSize) (restore func() error, err error) {
	here, err := b.replaceOperator(ctx, program)
	restore = func() error {
		if b.fleet != nil {
			b.fleet.close()
		}
		b.here = nil
		return here.restore(context.WithoutCancel(ctx))
	}
	if err == nil {
		err = here.lead(ctx)
	}
	if err != nil {
		return restore, fmt.Errorf("running the operator here: %w", err)
	}
	b.here = here
	fmt.Printf("operator for pool %s: %s on this machine, as are the executors\n", pool.name, program)
	if err := b.fill(ctx, []poolSize{pool}); err != nil {
		return restore, err
	}
	pods, err := b.startedPods(ctx, pool)
	if err != nil {
		return restore, err
	}
	b.fleet, err = newFleet(pods, b.restartPod(ctx))
	return restore, err
}

// restartPod returns what restarts a pod whose executor has ended for that.
func (b *bench) restartPod(ctx context.Context) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		// What it could not write, the operator waits for in vain, and deletes the pod.
		if err := b.kubelet().restart(context.WithoutCancel(ctx), pod); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

// valuesName is the Secret that tasks with values name: its keys are token and file.
const valuesName = "task-values"

// fileBytes of the file that a task with values has.
const fileBytes = 4 << 10

// valuesReader is the ClusterRole of those who read what tasks name.
const valuesReader = "opensandbox-task-values-reader"

// createValues makes the Secret, if it is not there from an earlier run, and has the operator
// read it.
func (b *bench) createValues(ctx context.Context) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: valuesName},
		Data: map[string][]byte{"token": []byte("token"), "file": bytes.Repeat([]byte{'x'}, fileBytes)}}
	if err := b.api.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making a Secret: %w", err)
	}
	if err := b.api.Create(ctx, roleBinding(deployedIdentity, b.namespace, "ClusterRole", valuesReader)); err != nil {
		return fmt.Errorf("letting the operator read Secrets: %w", err)
	}
	return nil
}

func addValues(task *v1alpha1.TaskSpec) {
	task.Process.Env = []v1alpha1.EnvVar{{Name: "TOKEN", ValueFrom: &v1alpha1.ValueSource{SecretKeyRef: &v1alpha1.KeyRef{Name: valuesName, Key: "token"}}}}
	task.Files = []v1alpha1.File{{Path: "/tmp/file", ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: valuesName, Key: "file"}}}}
}

// runPlain has the operator run the same tasks without values.
func (b *bench) runPlain(ctx context.Context, s scenario, round int) (sample, error) {
	s.values = false
	return b.runOperator(ctx, s, round)
}

// startedPods returns the pods of the pool, with ids for their containers: the stages
// of kwok give them none, a task names the container that it runs in, and a restart is known by
// other ones.
func (b *bench) startedPods(ctx context.Context, pool poolSize) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := b.api.List(ctx, &list, client.InNamespace(b.namespace), client.MatchingLabels{v1alpha1.LabelPoolName: pool.name}); err != nil {
		return nil, fmt.Errorf("listing the pods of pool %s: %w", pool.name, err)
	}
	if len(list.Items) != int(pool.size) {
		return nil, fmt.Errorf("pool %s has %d pods and should have %d", pool.name, len(list.Items), pool.size)
	}
	errs := make([]error, len(list.Items))
	workqueue.ParallelizeUntil(ctx, 32, len(list.Items), func(i int) {
		errs[i] = b.kubelet().start(ctx, &list.Items[i])
	})
	return list.Items, errors.Join(errs...)
}
