package podfeed

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// IndexBatchSandbox finds the template-mode pods of a namespace by the name of the
// BatchSandbox that controls them. By name, and not by UID, since of a BatchSandbox that
// is gone nothing else is known; those of an earlier one of the name are told by UID.
const IndexBatchSandbox = "batchSandbox"

// Index adds the indexes to the pod cache.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	if err := indexer.IndexField(ctx, &corev1.Pod{}, IndexBatchSandbox, IndexedBatchSandbox); err != nil {
		return fmt.Errorf("indexing pods by BatchSandbox: %w", err)
	}
	return nil
}

// IndexedBatchSandbox is what IndexBatchSandbox has of a pod.
func IndexedBatchSandbox(pod client.Object) []string {
	if name, _, ok := BatchSandboxOf(pod); ok {
		return []string{name.Name}
	}
	return nil
}

// BatchSandboxOf returns the BatchSandbox that controls the object, by its owner
// reference: labels can be forged.
func BatchSandboxOf(obj metav1.Object) (types.NamespacedName, types.UID, bool) {
	return controllerOf(obj, v1alpha1.KindBatchSandbox)
}
