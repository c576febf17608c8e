package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/opensandbox/operator/api/v1alpha1"
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

// Pods make the pods that the reconcilers would create.
type Pods struct {
	// Pool makes a pod of the pool.
	Pool func(*v1alpha1.Pool) (*corev1.Pod, error)
	// Shard makes the pod of a shard of a BatchSandbox in template mode.
	Shard func(*v1alpha1.BatchSandbox, int32) (*corev1.Pod, error)
}

// Register adds the webhooks to the manager's server.
func Register(mgr ctrl.Manager, pods Pods) error {
	config := rest.CopyConfig(mgr.GetConfig())
	config.QPS, config.Burst = dryRunQPS, dryRunBurst
	config.WarningHandlerWithContext = warningCollector{}
	writer, err := client.New(config, client.Options{Scheme: mgr.GetScheme()})
	if err != nil {
		return fmt.Errorf("setting up the client for dry runs: %w", err)
	}
	trial := &trial{create: func(ctx context.Context, pod *corev1.Pod) error {
		return writer.Create(ctx, pod, client.DryRunAll)
	}}
	server, scheme := mgr.GetWebhookServer(), mgr.GetScheme()
	server.Register(pathMutatePool, &admission.Webhook{Handler: admission.HandlerFunc(defaultPool)})
	server.Register(pathValidatePool, admission.WithValidator(scheme, &poolValidator{reader: mgr.GetClient(), pods: pods, trial: trial}))
	server.Register(pathMutateBatchSandbox, &admission.Webhook{Handler: admission.HandlerFunc(defaultBatchSandbox)})
	server.Register(pathValidateBatchSandbox, admission.WithValidator(scheme, &batchSandboxValidator{
		reader: mgr.GetClient(), pods: pods, trial: trial, clock: clock.RealClock{},
	}))
	return nil
}
