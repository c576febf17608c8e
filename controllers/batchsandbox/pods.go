package batchsandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pods creates and deletes pods, as long as the lease is fresh: another leader may have
// handed a pod on, or may make those that are missing itself.
type pods struct {
	client client.Client
	live   client.Reader
	fresh  func() error
}

// errNameTaken says that another object's pod has the name.
var errNameTaken = errors.New("the name is taken by a pod of another owner")

// create creates the pod. One that exists already is the same where the owner controls
// it: an earlier creation was done although its outcome was unclear.
func (p *pods) create(ctx context.Context, pod *corev1.Pod, owner types.UID) error {
	if err := p.fresh(); err != nil {
		return fmt.Errorf("not creating pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := p.client.Create(ctx, pod)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("creating pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		return nil
	}
	live, err := p.look(ctx, client.ObjectKeyFromObject(pod))
	if err != nil {
		return err
	}
	if live == nil {
		return fmt.Errorf("creating pod %s/%s: it existed and is gone", pod.Namespace, pod.Name)
	}
	if ref := metav1.GetControllerOf(live); ref == nil || ref.UID != owner || live.DeletionTimestamp != nil {
		return fmt.Errorf("creating pod %s/%s: %w", pod.Namespace, pod.Name, errNameTaken)
	}
	return nil
}

// look returns the metadata of a pod as the API server has it, or nil where it is gone.
func (p *pods) look(ctx context.Context, name types.NamespacedName) (*metav1.PartialObjectMetadata, error) {
	live := &metav1.PartialObjectMetadata{}
	live.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	err := p.live.Get(ctx, name, live)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for pod %s: %w", name, err)
	}
	return live, nil
}

// delete deletes that very pod, once: while the cache or a write that follows is late, it
// is asked for again and again. One that is gone, or another of its name, is no error.
func (p *pods) delete(ctx context.Context, name types.NamespacedName, uid types.UID, done *deletions) error {
	if done.has(uid) {
		return nil
	}
	if err := p.fresh(); err != nil {
		return fmt.Errorf("not deleting pod %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
	err := p.client.Delete(ctx, pod, client.Preconditions{UID: &uid})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting pod %s: %w", name, err)
	}
	done.add(uid)
	return nil
}

// deletions are the pods of one BatchSandbox whose deletion the API server has taken. The
// zero value is ready to use.
type deletions struct {
	mu   sync.Mutex // guards uids
	uids map[types.UID]bool
}

func (d *deletions) has(uid types.UID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.uids[uid]
}

func (d *deletions) add(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.uids == nil {
		d.uids = map[types.UID]bool{}
	}
	d.uids[uid] = true
}

// keep forgets all but the n pods that are there.
func (d *deletions) keep(n int, uidOf func(int) types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.uids) == 0 {
		return
	}
	there := make(map[types.UID]bool, n)
	for i := range n {
		there[uidOf(i)] = true
	}
	maps.DeleteFunc(d.uids, func(uid types.UID, _ bool) bool { return !there[uid] })
}
