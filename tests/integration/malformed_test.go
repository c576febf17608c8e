package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// What the API server stores and Go cannot read would stop the informer of its kind.
func TestWhatCannotBeReadIsRefused(t *testing.T) {
	ns := newNamespace(t)
	batch := func(field string, value any) map[string]any {
		return map[string]any{"replicas": int64(1), "poolRef": "pool", field: value}
	}
	pool := func(strategy string, value any) map[string]any {
		return map[string]any{"template": map[string]any{}, strategy: map[string]any{"maxUnavailable": value},
			"capacitySpec": map[string]any{"bufferMin": int64(0), "bufferMax": int64(0), "poolMin": int64(0), "poolMax": int64(0)}}
	}
	tests := map[string]struct {
		kind  string
		spec  map[string]any
		field string
	}{
		"a time in small letters":          {v1alpha1.KindBatchSandbox, batch("expireTime", "2026-01-01t00:00:00z"), "spec.expireTime"},
		"an offset of more than a day":     {v1alpha1.KindBatchSandbox, batch("expireTime", "2026-01-01T00:00:00+99:99"), "spec.expireTime"},
		"more seconds than a duration has": {v1alpha1.KindBatchSandbox, batch("ttlSeconds", int64(9223372036854775807)), "spec.ttlSeconds"},
		"a scale limit of 64 bits":         {v1alpha1.KindPool, pool("scaleStrategy", int64(1)<<32), "spec.scaleStrategy.maxUnavailable"},
		"an update limit of 64 bits":       {v1alpha1.KindPool, pool("updateStrategy", int64(1)<<32), "spec.updateStrategy.maxUnavailable"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			u := &unstructured.Unstructured{Object: map[string]any{"spec": test.spec}}
			u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(test.kind))
			u.SetNamespace(ns)
			u.SetName("unreadable")
			err := api.Create(t.Context(), u)
			require.True(t, apierrors.IsInvalid(err), err)
			require.ErrorContains(t, err, test.field)
		})
	}
}

// The schema of a pod template is too big for a CRD, so the API server stores any
// object there. One that is no pod template may harm nobody but its owner.
func TestATemplateOfTheWrongTypesStopsNobodyElse(t *testing.T) {
	ns := newNamespace(t)
	specs := map[string]map[string]any{
		v1alpha1.KindBatchSandbox: {"replicas": int64(1)},
		v1alpha1.KindPool:         {"capacitySpec": map[string]any{"bufferMin": int64(1), "bufferMax": int64(1), "poolMin": int64(0), "poolMax": int64(1)}},
	}
	malformed := map[string]*unstructured.Unstructured{}
	for kind, spec := range specs {
		spec["template"] = map[string]any{"spec": map[string]any{"containers": "nginx"}}
		u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
		u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
		u.SetNamespace(ns)
		u.SetName("malformed")
		require.NoError(t, api.Create(t.Context(), u))
		malformed[kind] = u
	}
	// A new leader lists all of them.
	operator.kill()
	require.NoError(t, operator.start())

	newPool(t, ns, 1, 2)
	bs := pooled(ns, "other", 1)
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, ready(1))
	for kind, u := range malformed {
		require.Eventually(t, func() bool {
			require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(u), u))
			conditions, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
			require.NoError(t, err)
			text := fmt.Sprint(conditions)
			return strings.Contains(text, v1alpha1.ReasonTemplateInvalid) && strings.Contains(text, "spec.template: not a pod template") &&
				strings.Contains(text, "spec.containers")
		}, patience, poll, "%s says what is wrong", kind)
		before := u.Object["spec"]
		require.NoError(t, api.Delete(t.Context(), u))
		gone(t, u)
		require.Equal(t, map[string]any{"spec": map[string]any{"containers": "nginx"}}, before.(map[string]any)["template"], "nothing is lost")
	}
}
