package webhook

import (
	"context"
	"crypto/tls"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/opensandbox/operator/controllers/podtemplate"
)

// Paths of the webhooks, as controller-gen and OLM write them.
const (
	pathMutatePool           = "/mutate-sandbox-opensandbox-io-v1alpha1-pool"
	pathValidatePool         = "/validate-sandbox-opensandbox-io-v1alpha1-pool"
	pathMutateBatchSandbox   = "/mutate-sandbox-opensandbox-io-v1alpha1-batchsandbox"
	pathValidateBatchSandbox = "/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox"
)

// Dry runs have a budget of their own, so that a burst of creates does not hold up
// the hand-outs of the reconcilers.
const (
	dryRunQPS   = 100
	dryRunBurst = 200
)

// ServerTLS is how the server of the webhooks speaks TLS.
func ServerTLS(c *tls.Config) {
	// As the API server asks. HTTP/2 would take in a mebibyte of each review that waits.
	c.NextProtos = []string{"http/1.1"}
	// Asked for of everybody and looked at with each review, not in the handshake: the
	// readiness check of the operator itself connects without one.
	c.ClientAuth = tls.RequestClientCert
}

// Register adds the webhooks to the manager's server, which speaks TLS as
// ServerTLS says. The executor is what the operator adds to pods, without a key: only the
// leader has it, and it says nothing about the pod. Clients are those who are answered; nil:
// everybody is.
func Register(mgr ctrl.Manager, executor *podtemplate.Executor, clients *Clients) error {
	config := rest.CopyConfig(mgr.GetConfig())
	config.QPS, config.Burst = dryRunQPS, dryRunBurst
	config.WarningHandlerWithContext = warningCollector{}
	writer, err := client.New(config, client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return fmt.Errorf("setting up the client for dry runs: %w", err)
	}
	trial := &trial{
		create:   func(ctx context.Context, pod *corev1.Pod) error { return writer.Create(ctx, pod, client.DryRunAll) },
		executor: executor,
	}
	scheme := mgr.GetScheme()
	validatePool := admission.WithValidator(scheme, &poolValidator{live: mgr.GetAPIReader(), trial: trial})
	validateBatchSandbox := admission.WithValidator(scheme, &batchSandboxValidator{
		cache: mgr.GetClient(), live: mgr.GetAPIReader(), trial: trial, clock: clock.RealClock{},
	})
	guard := newGuard()
	for path, handler := range map[string]admission.Handler{
		pathMutatePool:           admission.HandlerFunc(defaultPool),
		pathValidatePool:         sized{validatePool.Handler},
		pathMutateBatchSandbox:   admission.HandlerFunc(defaultBatchSandbox),
		pathValidateBatchSandbox: sized{validateBatchSandbox.Handler},
	} {
		mgr.GetWebhookServer().Register(path, clients.only(guard.before(&admission.Webhook{Handler: handler})))
	}
	return nil
}
