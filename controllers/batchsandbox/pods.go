package batchsandbox

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pods creates and deletes pods, as long as the lease is fresh: another leader may have
// lent a pod on, or may make those that are missing itself.
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

// delete deletes that very pod; one that is gone, or another of its name, is no error.
func (p *pods) delete(ctx context.Context, namespace, name string, uid types.UID) error {
	if err := p.fresh(); err != nil {
		return fmt.Errorf("not deleting pod %s/%s: %w", namespace, name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	err := p.client.Delete(ctx, pod, client.Preconditions{UID: &uid})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("deleting pod %s/%s: %w", namespace, name, err)
}
