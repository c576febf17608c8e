package task

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podfeed"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// The pods of a gang from a template are made at once, and become ready one by one.
func TestNoTaskStartsInAPartOfAGang(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 1)
	b := newBench(t, func(_ *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			select {
			case started <- struct{}{}:
			default:
			}
		}
		_ = json.NewEncoder(w).Encode(executorapi.Task{})
	})
	bs := b.bs
	bs.ResourceVersion, bs.Finalizers = "", []string{v1alpha1.FinalizerTaskCleanup}
	bs.Spec.PoolRef, bs.Spec.Template, bs.Spec.Replicas, bs.Spec.MinAvailable = "", &v1alpha1.PodTemplate{}, ptr.To(int32(2)), 2
	pod := b.pod.DeepCopy()
	pod.ResourceVersion, pod.Labels = "", map[string]string{v1alpha1.LabelBatchSandboxPodIndex: "0"}
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(bs, v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox))}
	types := b.Client.Scheme()
	require.NoError(t, scheme.AddToScheme(types))
	b.Client = fake.NewClientBuilder().WithScheme(types).WithObjects(bs, pod).
		WithIndex(pod, podfeed.IndexBatchSandbox, podfeed.IndexedBatchSandbox).Build()
	reconcile := func() {
		t.Helper()
		_, err := b.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(bs)})
		require.NoError(t, err)
	}
	reconcile()
	require.Empty(t, b.jobs.of(bs).records, "one of two is ready")

	require.NoError(t, b.Client.Get(t.Context(), client.ObjectKeyFromObject(bs), bs))
	bs.Annotations = map[string]string{v1alpha1.AnnotationEndpoints: `["10.0.0.1","10.0.0.2"]`}
	require.NoError(t, b.Client.Update(t.Context(), bs))
	reconcile()
	<-started
}
