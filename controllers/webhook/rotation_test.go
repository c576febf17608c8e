package webhook

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// replicas are two replicas of the operator before one API server.
type replicas struct {
	t    *testing.T
	api  client.WithWatch
	a, b *Certificates
}

func newReplicas(t *testing.T) *replicas {
	t.Helper()
	r := &replicas{t: t, api: fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ValidatingName},
			Webhooks: []admissionregistrationv1.ValidatingWebhook{{Name: "one"}, {Name: "two"}}},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName},
			Webhooks: []admissionregistrationv1.MutatingWebhook{{Name: "three"}}},
	).Build()}
	r.a = &Certificates{client: r.api, namespace: "ns", clock: clocktesting.NewFakeClock(someTime)}
	r.b = &Certificates{client: r.api, namespace: "ns", clock: r.a.clock}
	return r
}

func (r *replicas) sync(all ...*Certificates) {
	r.t.Helper()
	for _, c := range all {
		require.NoError(r.t, c.sync(r.t.Context()))
	}
}

func (r *replicas) secret() *corev1.Secret {
	r.t.Helper()
	secret := &corev1.Secret{}
	require.NoError(r.t, r.api.Get(r.t.Context(), client.ObjectKey{Namespace: "ns", Name: SecretName}, secret))
	return secret
}

func (r *replicas) configurations() (*admissionregistrationv1.ValidatingWebhookConfiguration, *admissionregistrationv1.MutatingWebhookConfiguration) {
	r.t.Helper()
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	require.NoError(r.t, r.api.Get(r.t.Context(), client.ObjectKey{Name: ValidatingName}, validating))
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{}
	require.NoError(r.t, r.api.Get(r.t.Context(), client.ObjectKey{Name: MutatingName}, mutating))
	return validating, mutating
}

// bundles returns what the API server trusts, of each webhook.
func (r *replicas) bundles() [][]byte {
	r.t.Helper()
	validating, mutating := r.configurations()
	return [][]byte{validating.Webhooks[0].ClientConfig.CABundle, validating.Webhooks[1].ClientConfig.CABundle, mutating.Webhooks[0].ClientConfig.CABundle}
}

// requireTrusted fails when the API server cannot call one of the replicas.
func (r *replicas) requireTrusted(number int) {
	r.t.Helper()
	for _, bundle := range r.bundles() {
		require.Equal(r.t, number, certificatesIn(bundle))
		for _, c := range []*Certificates{r.a, r.b} {
			served, err := c.GetCertificate(nil)
			require.NoError(r.t, err)
			require.True(r.t, bytes.Contains(bundle, bundleOf(served)), "what it serves is trusted")
		}
	}
}

func (r *replicas) serveTheSame() bool {
	return string(bundleOf(r.a.served.Load())) == string(bundleOf(r.b.served.Load()))
}

func TestAReplicaIsTrustedWhenTheSecretIsLost(t *testing.T) {
	tests := map[string]func(r *replicas){
		"deleted": func(r *replicas) { require.NoError(r.t, r.api.Delete(r.t.Context(), r.secret())) },
		"emptied": func(r *replicas) {
			secret := r.secret()
			secret.Data = nil
			require.NoError(r.t, r.api.Update(r.t.Context(), secret))
		},
		"deleted, and the configurations applied anew": func(r *replicas) {
			require.NoError(r.t, r.api.Delete(r.t.Context(), r.secret()))
			validating, mutating := r.configurations()
			for i := range validating.Webhooks {
				validating.Webhooks[i].ClientConfig.CABundle = nil
			}
			mutating.Webhooks[0].ClientConfig.CABundle = nil
			require.NoError(r.t, r.api.Update(r.t.Context(), validating))
			require.NoError(r.t, r.api.Update(r.t.Context(), mutating))
		},
	}
	for name, lose := range tests {
		t.Run(name, func(t *testing.T) {
			r := newReplicas(t)
			r.sync(r.a, r.b)
			r.requireTrusted(1)
			lose(r)
			r.sync(r.a)
			require.False(t, r.serveTheSame())
			r.requireTrusted(2)
			r.sync(r.b)
			require.True(t, r.serveTheSame())
			r.requireTrusted(2)
		})
	}
}

// While one replica is between reading the Secret and the webhook configurations, the
// other renews the certificate.
func TestAReplicaThatReadTheSecretBeforeARotationTakesNoTrustAway(t *testing.T) {
	r := newReplicas(t)
	r.sync(r.a, r.b)
	r.a.clock = clocktesting.NewFakeClock(someTime.Add(validity - renewal + time.Minute))
	var once sync.Once
	r.b.client = interceptor.NewClient(r.api, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if _, configuration := obj.(*admissionregistrationv1.ValidatingWebhookConfiguration); configuration {
				once.Do(func() {
					r.sync(r.a)
					r.b.clock = r.a.clock
				})
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	r.sync(r.b)
	require.False(t, r.serveTheSame())
	r.requireTrusted(2)
	r.sync(r.b)
	require.True(t, r.serveTheSame())
	r.requireTrusted(2)

	r.a.clock = clocktesting.NewFakeClock(someTime.Add(validity))
	r.b.clock = r.a.clock // the first one has ended
	r.sync(r.a, r.b)
	r.requireTrusted(1)
	assert.Equal(t, r.a.served.Load().Certificate[0], r.b.served.Load().Certificate[0])
}

// Two replicas that agree write nothing.
func TestWhatIsTrustedIsWrittenOnce(t *testing.T) {
	r := newReplicas(t)
	r.sync(r.a)
	require.NoError(t, r.api.Delete(t.Context(), r.secret()))
	r.sync(r.a, r.b)
	version := func() string {
		validating, _ := r.configurations()
		return validating.ResourceVersion
	}
	before := version()
	r.sync(r.a, r.b, r.a)
	require.Equal(t, before, version())
}
