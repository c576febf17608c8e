// Package podtemplate makes pods from the templates of Pools and BatchSandboxes.
// It is pure: it imports no client and has no state but the random names. Both
// reconcilers and the webhook call it.
package podtemplate

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// ForPool returns the pod that the pool's template makes, under the given name.
// The operator's labels win over the template's, and the template's eviction label
// is dropped: a pool of such pods would never rest. The error names the field of the
// template that has a wrong type.
func ForPool(pool *v1alpha1.Pool, name, revision string) (*corev1.Pod, error) {
	if err := pool.Spec.Template.Check(); err != nil {
		return nil, err
	}
	pod := fromTemplate(pool.Spec.Template, pool.Namespace, name)
	delete(pod.Labels, v1alpha1.LabelPoolEvict)
	pod.Labels[v1alpha1.LabelPoolName] = pool.Name
	pod.Labels[v1alpha1.LabelPoolRevision] = revision
	pod.OwnerReferences = []metav1.OwnerReference{
		*metav1.NewControllerRef(pool, v1alpha1.GroupVersion.WithKind(v1alpha1.KindPool)),
	}
	return pod, nil
}

// ForShard returns the pod for one shard of a BatchSandbox in template mode, with
// spec.shardPatches applied. The operator's labels win over the template's and the
// patch's. The error names the field that does not apply.
func ForShard(bs *v1alpha1.BatchSandbox, shard int32, name string) (*corev1.Pod, error) {
	template, err := patched(bs, shard)
	if err != nil {
		return nil, err
	}
	pod := fromTemplate(template, bs.Namespace, name)
	pod.Labels[v1alpha1.LabelBatchSandboxName] = bs.Name
	pod.Labels[v1alpha1.LabelBatchSandboxPodIndex] = strconv.Itoa(int(shard))
	pod.OwnerReferences = []metav1.OwnerReference{
		*metav1.NewControllerRef(bs, v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox)),
	}
	return pod, nil
}

// fromTemplate copies what a pod takes over from its template.
func fromTemplate(template *v1alpha1.PodTemplate, namespace, name string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	if template != nil {
		pod.Labels = maps.Clone(template.Labels)
		pod.Annotations = maps.Clone(template.Annotations)
		pod.Finalizers = append([]string(nil), template.Finalizers...)
		template.Spec.DeepCopyInto(&pod.Spec)
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedBy
	return pod
}
