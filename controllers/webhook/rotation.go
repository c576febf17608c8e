package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// Names of what config/default deploys.
const (
	// ServiceName of the webhooks.
	ServiceName = "opensandbox-webhook-service"
	// SecretName of their certificate. The operator makes it; it is in no manifest,
	// because applying one again would overwrite it.
	SecretName = "opensandbox-webhook-certificate"
	// ValidatingName is the ValidatingWebhookConfiguration.
	ValidatingName = "opensandbox-validating-webhook-configuration"
	// MutatingName is the MutatingWebhookConfiguration.
	MutatingName = "opensandbox-mutating-webhook-configuration"
)

const (
	checkEvery = 10 * time.Minute
	retryEvery = 5 * time.Second
)

// Certificates is the webhooks' certificate where nobody else gives them one: made and
// rotated by the operator, kept in a Secret that all replicas read, and named in the
// webhook configurations as what the API server is to trust. (cert-controller, the
// usual library, lists and watches all Secrets of the namespace, waits for the kubelet
// to mount them, and ends the operator when that does not happen.)
//
// It runs in every replica; whoever comes first renews.
type Certificates struct {
	client    client.Client
	namespace string // of the operator
	clock     clock.Clock

	served atomic.Pointer[tls.Certificate]
}

// NewCertificates returns the certificate of the operator in the namespace, which it
// must know. The client reads and writes without a cache, in every replica.
func NewCertificates(api client.Client, namespace string, c clock.Clock) (*Certificates, error) {
	if namespace == "" {
		return nil, fmt.Errorf("making the webhooks' certificate: the operator's namespace is not known")
	}
	return &Certificates{client: api, namespace: namespace, clock: c}, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica serves.
func (c *Certificates) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable. It never fails: the webhooks fail open, and the
// operator works without them.
func (c *Certificates) Start(ctx context.Context) error {
	for {
		wait := checkEvery
		if err := c.sync(ctx); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "keeping the webhook's certificate")
			wait = retryEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.clock.After(wait):
		}
	}
}

// Ready implements healthz.Checker: the API server can call this replica.
func (c *Certificates) Ready(*http.Request) error {
	_, err := c.GetCertificate(nil)
	return err
}

func (c *Certificates) names() []string {
	return []string{
		fmt.Sprintf("%s.%s.svc", ServiceName, c.namespace),
		fmt.Sprintf("%s.%s.svc.cluster.local", ServiceName, c.namespace),
	}
}

// sync makes the API server trust a certificate before it is served.
func (c *Certificates) sync(ctx context.Context) error {
	current, err := c.stored(ctx)
	if err != nil {
		return err
	}
	if err := c.trust(ctx, current.bundle); err != nil {
		return err
	}
	loaded, err := tls.X509KeyPair(current.certificate, current.key)
	if err != nil {
		return fmt.Errorf("loading the certificate: %w", err)
	}
	c.served.Store(&loaded)
	return nil
}

// stored returns the pair of the Secret, renewed when it is time.
func (c *Certificates) stored(ctx context.Context) (pair, error) {
	secret := &corev1.Secret{}
	name := types.NamespacedName{Namespace: c.namespace, Name: SecretName}
	err := c.client.Get(ctx, name, secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return pair{}, fmt.Errorf("reading Secret %s: %w", name, err)
	}
	old := pair{certificate: secret.Data[certificateEntry], key: secret.Data[keyEntry], bundle: secret.Data[caEntry]}
	current, renewed, err := nextPair(old, c.served.Load(), c.names(), c.clock.Now())
	if err != nil || !renewed {
		return current, err
	}
	secret.Data = map[string][]byte{certificateEntry: current.certificate, keyEntry: current.key, caEntry: current.bundle}
	if missing {
		secret.ObjectMeta = metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{
			"app.kubernetes.io/name": "opensandbox-operator", "app.kubernetes.io/part-of": "opensandbox",
		}}
		secret.Type = corev1.SecretTypeTLS
		err = c.client.Create(ctx, secret)
	} else {
		err = c.client.Update(ctx, secret) // fails when another replica was quicker
	}
	if err != nil {
		return pair{}, fmt.Errorf("writing Secret %s: %w", name, err)
	}
	log.FromContext(ctx).Info("made a new certificate for the webhooks", "validFor", validity.String())
	return current, nil
}

// trust names the bundle in both webhook configurations, beside what they trust already:
// another replica may serve that for as long as checkEvery, or may have renewed the
// certificate since this one has read the Secret. A configuration that is not there was
// taken away by an administrator.
func (c *Certificates) trust(ctx context.Context, bundle []byte) error {
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := c.client.Get(ctx, client.ObjectKey{Name: ValidatingName}, validating); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading ValidatingWebhookConfiguration %s: %w", ValidatingName, err)
	}
	var configs []*admissionregistrationv1.WebhookClientConfig
	for i := range validating.Webhooks {
		configs = append(configs, &validating.Webhooks[i].ClientConfig)
	}
	if err := c.inject(ctx, validating, configs, bundle); err != nil {
		return err
	}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := c.client.Get(ctx, client.ObjectKey{Name: MutatingName}, mutating); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading MutatingWebhookConfiguration %s: %w", MutatingName, err)
	}
	configs = nil
	for i := range mutating.Webhooks {
		configs = append(configs, &mutating.Webhooks[i].ClientConfig)
	}
	return c.inject(ctx, mutating, configs, bundle)
}

// inject patches the CA bundles alone, so that what an administrator changed stays. The
// test of resourceVersion keeps the indexes right.
func (c *Certificates) inject(ctx context.Context, obj client.Object, configs []*admissionregistrationv1.WebhookClientConfig, bundle []byte) error {
	patch := []map[string]any{{"op": "test", "path": "/metadata/resourceVersion", "value": obj.GetResourceVersion()}}
	for i, config := range configs {
		trusted := joined(c.clock.Now(), bundle, config.CABundle)
		if !bytes.Equal(config.CABundle, trusted) {
			patch = append(patch, map[string]any{
				"op": "add", "path": fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i),
				"value": base64.StdEncoding.EncodeToString(trusted),
			})
		}
	}
	if len(patch) == 1 {
		return nil
	}
	raw, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("marshalling a patch: %w", err)
	}
	if err := c.client.Patch(ctx, obj, client.RawPatch(types.JSONPatchType, raw)); err != nil {
		return fmt.Errorf("writing the CA bundle of %s: %w", obj.GetName(), err)
	}
	return nil
}
