package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// The floor is measured on a kind of its own, a copy of the BatchSandbox' CRD under
// another name: the same schema, the same validation, and no operator that reacts.
var (
	floorGroup = schema.GroupVersion{Group: "bench.opensandbox.io", Version: v1alpha1.GroupVersion.Version}
	floorCRD   = "floors." + floorGroup.Group
	crdKind    = schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
)

const (
	fillPatience  = 10 * time.Minute
	roundPatience = 2 * time.Minute
)

// bench holds the clients. Both speak of v1alpha1.BatchSandbox; floor's are Floors on the wire.
type bench struct {
	discovery  *discovery.DiscoveryClient
	api, floor client.WithWatch
	namespace  string
	// payloads are what the operator wrote last, by scenario: the floor writes the same.
	payloads map[string][]v1alpha1.BatchSandbox
	// fleet runs the tasks and restarts pods; nil where nothing needs it.
	fleet *fleet
	// here is the operator that runs on this machine, nil where the deployed one runs.
	here *standIn
}

func (b *bench) kubelet() *kubelet { return &kubelet{api: b.api} }

func connect() (*bench, error) {
	if os.Getenv("KUBECONFIG") == "" {
		return nil, errors.New("KUBECONFIG is not set: run the benchmark by 'make bench'")
	}
	cfg, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	cfg.QPS = -1 // no limit
	b := &bench{payloads: map[string][]v1alpha1.BatchSandbox{}}
	if b.discovery, err = discovery.NewDiscoveryClientForConfig(cfg); err != nil {
		return nil, fmt.Errorf("setting up discovery: %w", err)
	}
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return nil, fmt.Errorf("registering the API types: %w", err)
	}
	if b.api, err = client.NewWithWatch(cfg, client.Options{Scheme: scheme.Scheme}); err != nil {
		return nil, fmt.Errorf("setting up the client: %w", err)
	}
	floors := kruntime.NewScheme()
	floors.AddKnownTypeWithName(floorGroup.WithKind("Floor"), &v1alpha1.BatchSandbox{})
	floors.AddKnownTypeWithName(floorGroup.WithKind("FloorList"), &v1alpha1.BatchSandboxList{})
	metav1.AddToGroupVersion(floors, floorGroup)
	if b.floor, err = client.NewWithWatch(cfg, client.Options{Scheme: floors}); err != nil {
		return nil, fmt.Errorf("setting up the client of the floor: %w", err)
	}
	return b, nil
}

// setUp makes the floor's kind and the namespace.
func (b *bench) setUp(ctx context.Context, namespace string) error {
	if err := b.copyCRD(ctx); err != nil {
		return fmt.Errorf("making the floor's CRD: %w", err)
	}
	if b.namespace = namespace; namespace == "" {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-"}}
		if err := b.api.Create(ctx, ns); err != nil {
			return fmt.Errorf("making a namespace: %w", err)
		}
		b.namespace = ns.Name
	}
	fmt.Printf("namespace   %s\n", b.namespace)
	return b.empty(ctx, b.api, b.namespace)
}

// fill makes the pools and waits until all of their pods are ready.
func (b *bench) fill(ctx context.Context, pools []poolSize) error {
	for _, p := range pools {
		if err := b.api.Create(ctx, b.pool(p)); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("making pool %s: %w", p.name, err)
		}
	}
	for _, p := range pools {
		start := time.Now()
		if err := b.untilIdle(ctx, p.name, fillPatience); err != nil {
			return fmt.Errorf("filling pool %s: %w", p.name, err)
		}
		if p.chosenFrom() {
			continue // fifty lines would say nothing
		}
		fmt.Printf("pool %-6s %d pods ready after %.1f s\n", p.name, p.size, time.Since(start).Seconds())
	}
	return nil
}

// pool is one that may have no more pods than there are. Unless the load says otherwise, it needs
// no refill while it is measured: what is handed out comes back as it is (Noop).
func (b *bench) pool(p poolSize) *v1alpha1.Pool {
	var labels map[string]string
	if p.chosenFrom() {
		labels = map[string]string{choiceLabel: ""}
	}
	return &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: p.name, Labels: labels},
		Spec: v1alpha1.PoolSpec{
			CapacitySpec:    v1alpha1.CapacitySpec{BufferMin: 0, BufferMax: p.size, PoolMin: p.size, PoolMax: p.size},
			RecycleStrategy: v1alpha1.RecycleStrategy{Type: cmp.Or(p.recycle, v1alpha1.RecycleNoop)},
			TaskExecutor:    v1alpha1.TaskExecutorSpec{Enabled: p.name == tasksPool},
			Template: &v1alpha1.PodTemplate{PodTemplateSpec: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				Containers:   []corev1.Container{{Name: "sandbox-container", Image: "nginx:latest"}},
				NodeSelector: map[string]string{"type": "kwok"},
				Tolerations:  []corev1.Toleration{{Key: "kwok.x-k8s.io/node", Operator: corev1.TolerationOpExists}},
			}}},
		},
	}
}

// untilIdle waits until every pod of the pool is ready and current, and nobody holds one.
func (b *bench) untilIdle(ctx context.Context, name string, patience time.Duration) error {
	pool := &v1alpha1.Pool{}
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, client.ObjectKey{Namespace: b.namespace, Name: name}, pool)
		most := pool.Spec.CapacitySpec.PoolMax
		return err == nil && pool.Status.Available == most && pool.Status.Updated == most && pool.Status.Allocated == 0, err
	})
	if err != nil {
		return fmt.Errorf("%w; last seen: %+v", err, pool.Status)
	}
	return nil
}

func (b *bench) copyCRD(ctx context.Context) error {
	if err := b.deleteCRD(ctx); err != nil {
		return err
	}
	original, copied := &unstructured.Unstructured{}, &unstructured.Unstructured{}
	original.SetGroupVersionKind(crdKind)
	if err := b.api.Get(ctx, client.ObjectKey{Name: "batchsandboxes." + v1alpha1.GroupVersion.Group}, original); err != nil {
		return fmt.Errorf("reading the CRD of BatchSandbox: %w", err)
	}
	copied.SetGroupVersionKind(crdKind)
	copied.SetName(floorCRD)
	copied.Object["spec"] = original.Object["spec"]
	names := map[string]any{"kind": "Floor", "listKind": "FloorList", "plural": "floors", "singular": "floor"}
	if err := errors.Join(
		unstructured.SetNestedField(copied.Object, floorGroup.Group, "spec", "group"),
		unstructured.SetNestedMap(copied.Object, names, "spec", "names"),
	); err != nil {
		return err
	}
	if err := b.api.Create(ctx, copied); err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		return b.floor.List(ctx, &v1alpha1.BatchSandboxList{}) == nil, nil
	})
}

// deleteCRD deletes the floor's kind. Floors that an earlier run left would hold it up.
func (b *bench) deleteCRD(ctx context.Context) error {
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(crdKind)
	crd.SetName(floorCRD)
	if err := b.api.Get(ctx, client.ObjectKey{Name: floorCRD}, crd); err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := b.empty(ctx, b.floor, ""); err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Delete(ctx, crd)
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
}

// cleanUp deletes everything that was made, except the pools where keep says so. The
// namespace goes in the background.
func (b *bench) cleanUp(ctx context.Context, keep bool) error {
	errs := []error{b.deleteCRD(ctx)}
	if b.namespace != "" {
		errs = append(errs, b.empty(ctx, b.api, b.namespace))
	}
	if b.namespace != "" && !keep {
		errs = append(errs,
			b.api.DeleteAllOf(ctx, &v1alpha1.Pool{}, client.InNamespace(b.namespace)),
			b.api.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.namespace}}))
	}
	return errors.Join(errs...)
}
