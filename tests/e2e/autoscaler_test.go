package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func TestKubectlScalesBothKinds(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	pool := startPool(t, ns, shell("sleep 3600"), v1alpha1.CapacitySpec{BufferMax: 5, PoolMin: 1, PoolMax: 5})
	kubectl(t, "", "--namespace", ns, "scale", "pool", pool.Name, "--replicas=3")
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Spec.CapacitySpec.PoolMin == 3 && p.Status.Available == 3 })
	batch := pooled(ns, "batch", 1)
	start(t, batch)
	kubectl(t, "", "--namespace", ns, "scale", "batchsandbox", batch.Name, "--replicas=2")
	until(t, batch, func(bs *v1alpha1.BatchSandbox) bool { return ready(bs) && bs.Status.Ready == 2 })
	require.Len(t, heldBy(t, batch), 2)
}

// metrics is an external metrics API with one metric. The API server, which runs on the
// machine of the tests, asks this process.
type metrics struct {
	value atomic.Int64
	asked atomic.Int64
}

const metricsGroup, metricsVersion = "external.metrics.k8s.io", "v1beta1"

func (m *metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if !strings.Contains(r.URL.Path, "/namespaces/") { // the API server looks whether the API is there
		_ = json.NewEncoder(w).Encode(metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: metricsGroup + "/" + metricsVersion,
		})
		return
	}
	m.asked.Add(1)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "ExternalMetricValueList", "apiVersion": metricsGroup + "/" + metricsVersion, "metadata": map[string]any{},
		"items": []any{map[string]any{
			"metricName": "sandboxes-wanted", "metricLabels": map[string]any{}, "timestamp": metav1.Now(), "value": strconv.FormatInt(m.value.Load(), 10),
		}},
	})
}

// serve has the API server hand what is asked of the metrics API on to m.
func (m *metrics) serve(t *testing.T, ns string) {
	t.Helper()
	server := httptest.NewTLSServer(m)
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	port, err := strconv.ParseInt(at.Port(), 10, 64)
	require.NoError(t, err)
	require.NoError(t, api.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "metrics"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}))
	service := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
		"metadata": map[string]any{"name": metricsVersion + "." + metricsGroup, "labels": map[string]any{"opensandbox-test": ""}},
		"spec": map[string]any{
			"group": metricsGroup, "version": metricsVersion, "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
			"insecureSkipTLSVerify": true, "service": map[string]any{"namespace": ns, "name": "metrics", "port": port},
		},
	}}
	require.NoError(t, api.DeleteAllOf(t.Context(), service.DeepCopy(), client.MatchingLabels{"opensandbox-test": ""}), "what a test that was cut off has left")
	require.NoError(t, api.Create(t.Context(), service))
	// Before the server ends: no namespace can be deleted while an API does not answer.
	t.Cleanup(func() {
		require.NoError(t, api.Delete(context.Background(), service))
		untilGone(t, service)
	})
}

func TestAnAutoscalerSizesAPool(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	wanted := &metrics{}
	wanted.value.Store(3)
	wanted.serve(t, ns)
	pool := startPool(t, ns, shell("sleep 3600"), v1alpha1.CapacitySpec{BufferMax: 6, PoolMin: 1, PoolMax: 6})
	scaler := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pool.Name},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindPool, Name: pool.Name},
			MinReplicas:    ptr.To(int32(1)), MaxReplicas: 5,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
				Metric: autoscalingv2.MetricIdentifier{Name: "sandboxes-wanted"},
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(resource.MustParse("1"))},
			}}},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To(int32(0))}},
		}}
	require.NoError(t, api.Create(t.Context(), scaler))
	grown := func(n int32) func(*v1alpha1.Pool) bool {
		return func(p *v1alpha1.Pool) bool {
			return p.Spec.CapacitySpec.PoolMin == n && p.Status.Total >= n && p.Status.Available == p.Status.Total
		}
	}
	until(t, pool, grown(3))
	require.Positive(t, wanted.asked.Load())
	wanted.value.Store(9)
	until(t, pool, grown(5))
	until(t, scaler, func(a *autoscalingv2.HorizontalPodAutoscaler) bool { return a.Status.CurrentReplicas == 5 })
	wanted.value.Store(2)
	until(t, pool, grown(2))
}
