// The operator: it parses flags, wires the reconcilers and runs them.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/leadership"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/refill"
	"github.com/opensandbox/operator/controllers/webhook"
)

// leaseName is the Lease that the replicas of the operator compete for.
const leaseName = "opensandbox-operator"

type options struct {
	probeAddress, metricsAddress, pprof string
	metricsSecure, leaderElect          bool
	leaseNamespace, watchNamespaces     string
	leaseDuration, renewDeadline, retry time.Duration
	poolWorkers, sandboxWorkers         int
	taskWorkers, taskDispatches         int
	taskExecutorImage                   string
	taskExecutorInAllPools              bool
	qps, refillQPS                      float64
	burst, refillBurst                  int
	webhookPort                         int
	webhookCertDir                      string
	webhookClientCA, webhookClientName  string
	shutdownDelay                       time.Duration
	logging                             zap.Options
}

func (o *options) bind(fs *flag.FlagSet) {
	fs.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "Address of /healthz and /readyz.")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", "0", "Address of the metrics endpoint; 0 turns it off.")
	fs.BoolVar(&o.metricsSecure, "metrics-secure", true, "Serve metrics over HTTPS to authenticated and authorized clients only.")
	fs.StringVar(&o.pprof, "pprof-bind-address", "0", "Address of Go's profiles, which anybody who reaches it may read; 0 turns them off.")
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "Elect a leader. Needed where more than one replica may run, also during an update.")
	fs.StringVar(&o.leaseNamespace, "leader-elect-namespace", os.Getenv("POD_NAMESPACE"), "Namespace of the Lease and of the task executors' keys. Default: POD_NAMESPACE.")
	fs.DurationVar(&o.leaseDuration, "leader-elect-lease-duration", 15*time.Second, "How long a lease that is not renewed stands.")
	fs.DurationVar(&o.renewDeadline, "leader-elect-renew-deadline", 10*time.Second, "How long the leader tries to renew before it gives up.")
	fs.DurationVar(&o.retry, "leader-elect-retry-period", 2*time.Second, "Time between two renewals of the lease.")
	fs.StringVar(&o.watchNamespaces, "watch-namespaces", os.Getenv("WATCH_NAMESPACE"), "Namespaces to watch, separated by commas. Empty: all.")
	fs.StringVar(&o.taskExecutorImage, "task-executor-image", os.Getenv("RELATED_IMAGE_TASK_EXECUTOR"), "Image of the task executor that is added to sandboxes. Default: RELATED_IMAGE_TASK_EXECUTOR.")
	fs.BoolVar(&o.taskExecutorInAllPools, "task-executor-in-all-pools", false, "Add the task executor to the pods of every pool that may have one, as if spec.taskExecutor.enabled were set. For clients that cannot set it.")
	fs.IntVar(&o.poolWorkers, "pool-workers", 8, "Pools that are reconciled at a time.")
	fs.IntVar(&o.sandboxWorkers, "batchsandbox-workers", 64, "BatchSandboxes that are reconciled at a time.")
	fs.IntVar(&o.taskWorkers, "task-workers", 16, "BatchSandboxes whose tasks are reconciled at a time.")
	fs.IntVar(&o.taskDispatches, "task-dispatches", 256, "Tasks that are dispatched at a time.")
	fs.Float64Var(&o.qps, "kube-api-qps", 1000, "Requests per second to the API server.")
	fs.IntVar(&o.burst, "kube-api-burst", 2000, "Requests to the API server that may exceed kube-api-qps for a moment.")
	fs.Float64Var(&o.refillQPS, "refill-qps", 0, "Pods per second that may be created and deleted to keep pools full, apart from kube-api-qps. 0: as many as the API server answers in good time.")
	fs.IntVar(&o.refillBurst, "refill-burst", 200, "Creates and deletes that may exceed refill-qps for a moment.")
	fs.IntVar(&o.webhookPort, "webhook-port", 0, "Port of the admission webhooks; 0 turns them off.")
	fs.StringVar(&o.webhookCertDir, "webhook-cert-dir", "", "Directory with the webhooks' tls.crt and tls.key. Empty: the operator makes and rotates a certificate itself, in POD_NAMESPACE.")
	fs.StringVar(&o.webhookClientCA, "webhook-client-ca", os.Getenv("WEBHOOK_CLIENT_CA"), "File with the CA certificates of the client certificate that the API server shows to webhooks. Reviews without one are refused. Empty: they are answered, whoever asks. Default: WEBHOOK_CLIENT_CA.")
	fs.StringVar(&o.webhookClientName, "webhook-client-name", os.Getenv("WEBHOOK_CLIENT_NAME"), "Common name of that client certificate. Empty: any that the CA has signed. Default: WEBHOOK_CLIENT_NAME.")
	fs.DurationVar(&o.shutdownDelay, "shutdown-delay", 0, "How long the operator goes on when it is told to end. With webhooks: as long as the API server may still call this replica.")
	o.logging.BindFlags(fs)
}

func main() {
	var o options
	o.bind(flag.CommandLine)
	flag.Parse()
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&o.logging)))
	if err := run(goOn(ctrl.SetupSignalHandler(), o.shutdownDelay), &o); err != nil {
		ctrl.Log.Error(err, "the operator ends")
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if o.taskExecutorInAllPools && o.taskExecutorImage == "" {
		return fmt.Errorf("flag --task-executor-in-all-pools: needs --task-executor-image or RELATED_IMAGE_TASK_EXECUTOR")
	}
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		return fmt.Errorf("registering the API types: %w", err)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the cluster: %w", err)
	}
	config.QPS, config.Burst = float32(o.qps), o.burst
	// Else the API server compresses each event of a watch, and both replicas expand it: a
	// network within a cluster has more to spare than their CPUs.
	config.DisableCompression = true
	lease, err := newLease(config, o)
	if err != nil {
		return err
	}
	certificates, err := newCertificates(config, o)
	if err != nil {
		return err
	}
	budget := refill.New()
	mgr, err := ctrl.NewManager(config, managerOptions(o, lease, certificates, budget))
	if err != nil {
		return fmt.Errorf("setting up the manager: %w", err)
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("adding the health check: %w", err)
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("adding the readiness check: %w", err)
	}
	if err := wire(ctx, mgr, o, lease, budget); err != nil {
		return err
	}
	if err := serveWebhooks(mgr, o, certificates); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func newLease(config *rest.Config, o *options) (*leadership.Lease, error) {
	if !o.leaderElect {
		return nil, nil
	}
	if o.leaseNamespace == "" {
		return nil, fmt.Errorf("flag --leader-elect-namespace: must be set with --leader-elect where POD_NAMESPACE is not")
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("naming this replica: %w", err)
	}
	identity := resourcelock.ResourceLockConfig{Identity: host + "_" + rand.Text()}
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, o.leaseNamespace, leaseName, identity, config, o.renewDeadline)
	if err != nil {
		return nil, fmt.Errorf("setting up the lease: %w", err)
	}
	// The lock's own client gives up on a request after half the renew deadline, and so on a watch.
	watcher, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("setting up the watch of the lease: %w", err)
	}
	name := types.NamespacedName{Namespace: o.leaseNamespace, Name: leaseName}
	return leadership.NewLease(lock, watcher, name, o.renewDeadline, clock.RealClock{}), nil
}

func (o *options) namespaces() []string {
	return strings.FieldsFunc(o.watchNamespaces, func(r rune) bool { return r == ',' || r == ' ' })
}

func managerOptions(o *options, lease *leadership.Lease, certificates *webhook.Certificates, budget *refill.Budget) ctrl.Options {
	watched := map[string]cache.Config{}
	for _, namespace := range o.namespaces() {
		watched[namespace] = cache.Config{}
	}
	options := ctrl.Options{
		Scheme: clientgoscheme.Scheme,
		Cache: cache.Options{
			DefaultNamespaces: watched,
			ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {
				Label:     labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}),
				Transform: podfeed.Strip,
			}},
		},
		// The client that writes: nothing is written with an old lease.
		NewClient: func(config *rest.Config, options client.Options) (client.Client, error) {
			options.HTTPClient = nil // it would bypass the fence
			return client.New(budget.HandOuts(leadership.Fenced(config, lease.Fresh)), options)
		},
		HealthProbeBindAddress:        o.probeAddress,
		PprofBindAddress:              o.pprof,
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress, SecureServing: o.metricsSecure},
		LeaderElection:                lease != nil,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &o.leaseDuration,
		RenewDeadline:                 &o.renewDeadline,
		RetryPeriod:                   &o.retry,
	}
	if o.metricsSecure {
		options.Metrics.FilterProvider = filters.WithAuthenticationAndAuthorization
	}
	if lease != nil {
		options.LeaderElectionResourceLockInterface = lease
	}
	if o.webhookPort != 0 {
		options.WebhookServer = ctrlwebhook.NewServer(ctrlwebhook.Options{
			Port: o.webhookPort, CertDir: o.webhookCertDir, TLSOpts: []func(*tls.Config){webhook.ServerTLS, func(c *tls.Config) {
				if certificates != nil {
					c.GetCertificate = certificates.GetCertificate
				}
			}},
		})
	}
	return options
}

// newCertificates returns nil where the operator does not make the webhooks' certificate
// itself.
func newCertificates(config *rest.Config, o *options) (*webhook.Certificates, error) {
	if o.webhookPort == 0 || o.webhookCertDir != "" {
		return nil, nil
	}
	direct, err := client.New(config, client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		return nil, fmt.Errorf("setting up the client for certificates: %w", err)
	}
	certificates, err := webhook.NewCertificates(direct, os.Getenv("POD_NAMESPACE"), clock.RealClock{})
	if err != nil {
		return nil, fmt.Errorf("flag --webhook-port: needs POD_NAMESPACE in the environment, or --webhook-cert-dir: %w", err)
	}
	return certificates, nil
}

// serveWebhooks serves admission in every replica. A replica is ready when the API
// server can call it.
func serveWebhooks(mgr ctrl.Manager, o *options, certificates *webhook.Certificates) error {
	if o.webhookPort == 0 {
		return nil
	}
	clients, err := webhook.NewClients(o.webhookClientCA, o.webhookClientName)
	if err != nil {
		return fmt.Errorf("flag --webhook-client-ca: %w", err)
	}
	if certificates != nil {
		if err := mgr.Add(certificates); err != nil {
			return fmt.Errorf("adding the certificates: %w", err)
		}
		if err := mgr.AddReadyzCheck("webhook-certificate", certificates.Ready); err != nil {
			return fmt.Errorf("adding the readiness check: %w", err)
		}
	}
	if err := mgr.AddReadyzCheck("webhook", mgr.GetWebhookServer().StartedChecker()); err != nil {
		return fmt.Errorf("adding the readiness check: %w", err)
	}
	return webhook.Register(mgr, &podtemplate.Executor{Image: o.taskExecutorImage, InAllPools: o.taskExecutorInAllPools}, clients)
}
