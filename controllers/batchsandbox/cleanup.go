package batchsandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/taskreport"
)

// addTaskFinalizer comes before the first task of a template-mode BatchSandbox may
// start: its deletion then waits until they are stopped. A pooled one gets the
// finalizer with its allocation.
func (r *Reconciler) addTaskFinalizer(ctx context.Context, s *scope) error {
	if s.bs.Spec.TaskTemplate == nil || slices.Contains(s.bs.Finalizers, v1alpha1.FinalizerTaskCleanup) {
		return nil
	}
	return r.writeFinalizers(ctx, s, append(slices.Clone(s.bs.Finalizers), v1alpha1.FinalizerTaskCleanup))
}

// deleteTemplate stops the tasks of a template-mode BatchSandbox, deletes its pods
// and lets it go. It returns when to come back.
func (r *Reconciler) deleteTemplate(ctx context.Context, s *scope) (time.Duration, error) {
	if !slices.Contains(s.bs.Finalizers, v1alpha1.FinalizerTaskCleanup) {
		return 0, r.deletePodsOf(ctx, s.owner.NamespacedName)
	}
	pods, err := r.shardPods(ctx, s)
	if err != nil {
		return 0, err
	}
	stopping := 0
	for _, pod := range pods {
		if r.Tasks != nil && pod.DeletionTimestamp == nil && !podfeed.Finished(pod) &&
			r.Tasks.Stop(s.bs, pod.Name, pod.UID, false) == taskreport.StillStopping {
			stopping++
		}
	}
	if stopping > 0 {
		v := r.viewTemplate(s, pods)
		v.deleting = waitsFor(stopping, nil)
		return r.writeStatus(ctx, s, v)
	}
	err = r.deletePodsOf(ctx, s.owner.NamespacedName)
	if err == nil {
		err = r.writeFinalizers(ctx, s, slices.DeleteFunc(slices.Clone(s.bs.Finalizers),
			func(f string) bool { return f == v1alpha1.FinalizerTaskCleanup }))
	}
	return 0, err
}

// writeFinalizers replaces the finalizers of that very version of the object.
func (r *Reconciler) writeFinalizers(ctx context.Context, s *scope, finalizers []string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": s.bs.ResourceVersion, "finalizers": finalizers,
	}})
	if err != nil {
		return fmt.Errorf("building the patch of the finalizers: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	answer := s.bs.DeepCopy()
	if err := r.Client.Patch(ctx, answer, client.RawPatch(types.MergePatchType, patch)); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("writing the finalizers: %w", err)
	}
	s.memo.latest, s.bs = answer, answer.DeepCopy()
	return nil
}
