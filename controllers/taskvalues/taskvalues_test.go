package taskvalues

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
)

var pod = types.NamespacedName{Namespace: "ns", Name: "p"}

func secret(value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": []byte(value)}}
}

func key(name, key string, optional *bool) *v1alpha1.KeyRef {
	return &v1alpha1.KeyRef{Name: name, Key: key, Optional: optional}
}

// Who asks while a read is under way must not get what the object held before it asked.
func TestTasksThatAskTogetherShareTheNextRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		goOn := make(chan struct{})
		api := fake.NewClientBuilder().WithObjects(secret("old")).WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, obj client.Object, options ...client.GetOption) error {
				err := c.Get(ctx, name, obj, options...)
				if reads.Add(1) == 1 {
					<-goOn // with the old value in its hands
				}
				return err
			},
		}).Build()
		r := New(api, nil)
		var asking sync.WaitGroup
		ask := func(want string) {
			asking.Go(func() {
				value, found, err := r.For(t.Context(), pod, "u").Key(shardtask.KindSecret, key("s", "k", nil))
				assert.True(t, err == nil && found, err)
				assert.Equal(t, want, string(value))
			})
		}
		ask("old")
		synctest.Wait()
		require.NoError(t, api.Update(t.Context(), secret("new")))
		for range 100 {
			ask("new")
		}
		synctest.Wait()
		close(goOn)
		asking.Wait()
		require.Equal(t, int32(2), reads.Load())
		require.Empty(t, r.queues, "nothing is kept")
	})
}

func TestATaskReadsAnObjectOnce(t *testing.T) {
	var reads atomic.Int32
	api := fake.NewClientBuilder().WithObjects(secret("v")).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, obj client.Object, options ...client.GetOption) error {
			reads.Add(1)
			return c.Get(ctx, name, obj, options...)
		},
	}).Build()
	values := New(api, nil).For(t.Context(), pod, "u")
	for range 3 {
		_, _, err := values.Key(shardtask.KindSecret, key("s", "k", nil))
		require.NoError(t, err)
	}
	require.Equal(t, int32(1), reads.Load())
}

func TestWhatIsNotThereIsSaid(t *testing.T) {
	api := fake.NewClientBuilder().WithObjects(secret("v"),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"t": "text"}, BinaryData: map[string][]byte{"b": {0xff}}},
	).Build()
	r := New(api, []types.NamespacedName{{Namespace: "ns", Name: "keys"}})
	for name, test := range map[string]struct {
		kind         shardtask.ValueKind
		ref          *v1alpha1.KeyRef
		want, reason string
		message      string
		found        bool
	}{
		"a key of a Secret":            {kind: shardtask.KindSecret, ref: key("s", "k", nil), want: "v", found: true},
		"text of a ConfigMap":          {kind: shardtask.KindConfigMap, ref: key("c", "t", nil), want: "text", found: true},
		"bytes of a ConfigMap":         {kind: shardtask.KindConfigMap, ref: key("c", "b", nil), want: "\xff", found: true},
		"a missing Secret":             {kind: shardtask.KindSecret, ref: key("x", "k", nil), reason: v1alpha1.ReasonValuesNotFound, message: "there is no Secret x in namespace ns"},
		"a missing key":                {kind: shardtask.KindConfigMap, ref: key("c", "x", ptr.To(false)), reason: v1alpha1.ReasonValuesNotFound, message: `ConfigMap c of namespace ns has no key "x"`},
		"a missing Secret, optional":   {kind: shardtask.KindSecret, ref: key("x", "k", ptr.To(true))},
		"a missing key, optional":      {kind: shardtask.KindSecret, ref: key("s", "x", ptr.To(true))},
		"a Secret of the operator":     {kind: shardtask.KindSecret, ref: key("keys", "k", ptr.To(true)), reason: v1alpha1.ReasonValuesNotReadable, message: "Secret keys of namespace ns cannot be read: it is the operator's own"},
		"a ConfigMap of the same name": {kind: shardtask.KindConfigMap, ref: key("keys", "k", ptr.To(true))},
	} {
		t.Run(name, func(t *testing.T) {
			value, found, err := r.For(t.Context(), pod, "u").Key(test.kind, test.ref)
			if test.reason != "" {
				var waits *shardtask.ValueError
				require.ErrorAs(t, err, &waits)
				require.Equal(t, shardtask.ValueError{Reason: test.reason, Message: test.message}, *waits)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.found, found)
			require.Equal(t, test.want, string(value))
		})
	}
}

func TestFieldsOfThePod(t *testing.T) {
	api := fake.NewClientBuilder().WithObjects(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", Labels: map[string]string{"a/b": "l"}, Annotations: map[string]string{"c": "n"}},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "account"},
		Status: corev1.PodStatus{HostIP: "1.1.1.1", PodIP: "2.2.2.2", HostIPs: []corev1.HostIP{{IP: "1.1.1.1"}, {IP: "::1"}},
			PodIPs: []corev1.PodIP{{IP: "2.2.2.2"}, {IP: "::2"}}},
	}).Build()
	values := New(api, nil).For(t.Context(), pod, "u")
	for path, want := range map[string]string{
		"metadata.name": "p", "metadata.namespace": "ns", "metadata.uid": "u", "metadata.labels['a/b']": "l", "metadata.labels['x']": "",
		"metadata.annotations['c']": "n", "spec.nodeName": "node", "spec.serviceAccountName": "account",
		"status.hostIP": "1.1.1.1", "status.hostIPs": "1.1.1.1,::1", "status.podIP": "2.2.2.2", "status.podIPs": "2.2.2.2,::2",
	} {
		got, err := values.Field(path)
		require.NoError(t, err)
		require.Equal(t, want, got, path)
	}
	_, err := New(api, nil).For(t.Context(), pod, "another").Field("spec.nodeName")
	require.ErrorContains(t, err, "another one")
	for path, want := range map[string]string{"metadata.name": "p", "metadata.namespace": "ns", "metadata.uid": "u"} {
		got, err := New(nil, nil).For(t.Context(), pod, "u").Field(path)
		require.NoError(t, err)
		require.Equal(t, want, got, "without a read")
	}
}
