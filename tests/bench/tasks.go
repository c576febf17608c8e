package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/webhook"
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
		return here.restore(context.WithoutCancel(ctx), b)
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
	b.fleet, err = newFleet(pods, func(pod *corev1.Pod) {
		// What it could not write, the operator waits for in vain, and deletes the pod.
		if err := b.kubelet().restart(context.WithoutCancel(ctx), pod); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	})
	return restore, err
}

// valuesName is the Secret that tasks with values name: its keys are token and file.
const valuesName = "task-values"

// fileBytes of the file that a task with values has.
const fileBytes = 4 << 10

// createValues makes the Secret, if it is not there from an earlier run.
func (b *bench) createValues(ctx context.Context) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: valuesName},
		Data: map[string][]byte{"token": []byte("token"), "file": bytes.Repeat([]byte{'x'}, fileBytes)}}
	if err := b.api.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making a Secret: %w", err)
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

// hostOperator is the operator's program on this machine, in place of the deployed one.
type hostOperator struct {
	command  *exec.Cmd
	replicas int32
	// webhooks is the configuration that was taken away, nil where there was none.
	webhooks *admissionregistrationv1.ValidatingWebhookConfiguration
}

// replaceOperator stops the deployed operator, if there is one, and starts the program.
func (b *bench) replaceOperator(ctx context.Context, program string) (*hostOperator, error) {
	h := &hostOperator{}
	deployed := &appsv1.Deployment{}
	err := b.api.Get(ctx, deployment, deployed)
	if client.IgnoreNotFound(err) != nil {
		return h, fmt.Errorf("looking for the operator: %w", err)
	}
	if err == nil && deployed.Spec.Replicas != nil {
		h.replicas = *deployed.Spec.Replicas
	}
	if h.webhooks, err = b.removeWebhooks(ctx); err != nil {
		return h, err
	}
	if err := b.scaleOperator(ctx, 0); err != nil {
		return h, err
	}
	command := exec.Command(program, // restore ends it in order
		"--leader-elect", "--health-probe-bind-address=0", "--task-executor-image="+executorImage(deployed))
	command.Env = append(os.Environ(), "POD_NAMESPACE="+deployment.Namespace)
	output, err := os.Create(program + ".bench.log")
	if err != nil {
		return h, fmt.Errorf("opening the operator's log: %w", err)
	}
	defer output.Close() // it has a handle of its own
	command.Stderr = output
	if err := command.Start(); err != nil {
		return h, fmt.Errorf("starting it: %w", err)
	}
	h.command = command
	return h, b.untilLeads(ctx)
}

// untilLeads waits until the operator on this machine is the leader: a deployed one that is told to
// end goes on for a while.
func (b *bench) untilLeads(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("asking for the name of this machine: %w", err)
	}
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		var held coordinationv1.Lease
		err := b.api.Get(ctx, lease, &held)
		return err == nil && strings.HasPrefix(ptr.Deref(held.Spec.HolderIdentity, ""), host+"_"), client.IgnoreNotFound(err)
	})
}

// executorImage is the one that the deployed operator gives to pods: with another one,
// each of the two would replace the pods of the other.
func executorImage(deployed *appsv1.Deployment) string {
	for i := range deployed.Spec.Template.Spec.Containers {
		for _, e := range deployed.Spec.Template.Spec.Containers[i].Env {
			if e.Name == "RELATED_IMAGE_TASK_EXECUTOR" {
				return e.Value
			}
		}
	}
	return "none"
}

// restore ends the program and brings the deployed operator back.
func (h *hostOperator) restore(ctx context.Context, b *bench) error {
	var errs []error
	if h.command != nil {
		_ = h.command.Process.Signal(syscall.SIGTERM) // Wait tells how it ended, also before this
		if err := h.command.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("the operator ended with %w: see %s.bench.log", err, h.command.Path))
		}
	}
	if h.replicas > 0 {
		errs = append(errs, b.scaleOperator(ctx, h.replicas))
	}
	if h.webhooks != nil {
		h.webhooks.ResourceVersion = ""
		if err := b.api.Create(ctx, h.webhooks); err != nil {
			errs = append(errs, fmt.Errorf("bringing back ValidatingWebhookConfiguration %s: %w", h.webhooks.Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeWebhooks takes away the configuration of the validating webhooks: while the
// deployed operator is away, the API server would try for seconds to reach them at every
// create.
func (b *bench) removeWebhooks(ctx context.Context) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	webhooks := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	err := b.api.Get(ctx, client.ObjectKey{Name: webhook.ValidatingName}, webhooks)
	if err == nil {
		err = b.api.Delete(ctx, webhooks)
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("taking ValidatingWebhookConfiguration %s away: %w", webhook.ValidatingName, err)
	}
	return webhooks, nil
}

// scaleOperator sets the replicas of the deployed operator and waits until so many are
// ready. Where it is not deployed, there is nothing to do.
func (b *bench) scaleOperator(ctx context.Context, replicas int32) error {
	deployed := &appsv1.Deployment{}
	deployed.Namespace, deployed.Name = deployment.Namespace, deployment.Name
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if err := b.api.Patch(ctx, deployed, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return client.IgnoreNotFound(err)
	}
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, deployment, deployed)
		return err == nil && deployed.Status.ReadyReplicas == replicas && deployed.Status.Replicas == replicas, err
	})
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
