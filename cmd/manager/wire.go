package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"github.com/opensandbox/operator/controllers/batchsandbox"
	"github.com/opensandbox/operator/controllers/keyring"
	"github.com/opensandbox/operator/controllers/leadership"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/ownnamespace"
	"github.com/opensandbox/operator/controllers/podfeed"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/pool"
	"github.com/opensandbox/operator/controllers/refill"
	"github.com/opensandbox/operator/controllers/startup"
	"github.com/opensandbox/operator/controllers/task"
	"github.com/opensandbox/operator/controllers/wakequeue"
	"github.com/opensandbox/operator/controllers/webhook"
	executorclient "github.com/opensandbox/operator/executor/client"
	"github.com/opensandbox/operator/executor/token"
)

// parts are what more than one reconciler works with.
type parts struct {
	*options
	mgr      ctrl.Manager
	lease    *leadership.Lease
	gate     *leadership.Gate
	ledger   *ledger.Ledger
	own      *ownnamespace.OwnNamespace
	keys     *keyring.Keyring
	recorder events.EventRecorder
	// budget is what all requests share that keep pools full, and refill the client for them.
	budget *refill.Budget
	refill client.Client
	// The reconcilers wake each other, and the ledger wakes them, through these.
	pools, sandboxes, tasks *wakequeue.Queue
	// restartRules is set before the gate opens.
	restartRules bool
}

// wire connects the ledger, its rebuild and the reconcilers.
func wire(ctx context.Context, mgr ctrl.Manager, o *options, lease *leadership.Lease, budget *refill.Budget) error {
	p := &parts{
		options: o, mgr: mgr, lease: lease, budget: budget, gate: leadership.NewGate(),
		keys: &keyring.Keyring{}, recorder: mgr.GetEventRecorder("opensandbox-operator"),
		pools: &wakequeue.Queue{}, sandboxes: &wakequeue.Queue{}, tasks: &wakequeue.Queue{},
	}
	p.ledger = ledger.New(ledger.Hooks{Pool: p.pools.WakeSoon, Owner: func(name types.NamespacedName) {
		p.sandboxes.WakeShared(name)
		p.tasks.WakeSoon(name)
	}})
	if err := podfeed.Index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := p.addOwnNamespace(); err != nil {
		return fmt.Errorf("setting up the watch over the operator's own namespace: %w", err)
	}
	if err := p.addRefill(); err != nil {
		return fmt.Errorf("setting up the client for refills: %w", err)
	}
	if err := p.addPools(); err != nil {
		return fmt.Errorf("setting up the pool reconciler: %w", err)
	}
	if err := p.addSandboxesAndTasks(ctx); err != nil {
		return fmt.Errorf("setting up the reconcilers of BatchSandboxes and of tasks: %w", err)
	}
	if err := p.addStart(); err != nil {
		return fmt.Errorf("setting up the start of a leader: %w", err)
	}
	return nil
}

// addOwnNamespace adds nothing where the operator runs in no namespace of the cluster, or
// has nothing in it that it could hold.
func (p *parts) addOwnNamespace() error {
	name, watched := os.Getenv("POD_NAMESPACE"), p.namespaces()
	if name == "" || len(watched) > 0 && !slices.Contains(watched, name) {
		return nil
	}
	var err error
	p.own, err = ownnamespace.New(ownnamespace.Config{
		Name: name, Live: p.mgr.GetAPIReader(), Client: p.mgr.GetClient(), Fresh: p.lease.Fresh, Clock: clock.RealClock{},
	})
	if err != nil {
		return err
	}
	return p.mgr.Add(p.own)
}

// executor returns what pods with a task executor get from now on.
func (p *parts) executor() *podtemplate.Executor {
	key := p.keys.Current()
	return &podtemplate.Executor{
		Image: p.taskExecutorImage, KeyID: key.KeyID(), PublicKeys: token.FormatPublicKeys(key.PublicKey()),
		PodKey: keyring.PodKey, InAllPools: p.taskExecutorInAllPools, RestartRules: p.restartRules,
	}
}

func (p *parts) addRefill() (err error) {
	config := rest.CopyConfig(p.mgr.GetConfig())
	config.QPS, config.Burst = float32(p.refillQPS), p.refillBurst
	if p.refillQPS == 0 {
		config.QPS = -1 // no limit
	}
	p.refill, err = client.New(p.budget.Refill(leadership.Fenced(config, p.lease.Fresh)), client.Options{Scheme: p.mgr.GetScheme()})
	return err
}

func (p *parts) addPools() error {
	pools, err := pool.New(pool.Config{
		Client: p.mgr.GetClient(), APIReader: p.mgr.GetAPIReader(), Refill: p.refill, Ledger: p.ledger, Wakes: p.pools,
		Executor: p.executor, Ending: p.own.Ending,
		WaitOpen: p.gate.Wait, Recorder: p.recorder, Clock: clock.RealClock{},
	})
	if err != nil {
		return err
	}
	return pools.SetupWithManager(p.mgr, controller.Options{MaxConcurrentReconciles: p.poolWorkers})
}

func (p *parts) addSandboxesAndTasks(ctx context.Context) error {
	tasks, err := task.New(ctx, task.Config{
		Client: p.mgr.GetClient(), Live: p.mgr.GetAPIReader(), Ledger: p.ledger, Wakes: p.tasks,
		OwnSecrets: []types.NamespacedName{
			{Namespace: p.leaseNamespace, Name: keyring.SecretName},
			{Namespace: os.Getenv("POD_NAMESPACE"), Name: webhook.SecretName},
		},
		Executors: executorclient.New(executorclient.Options{}), Dispatches: p.taskDispatches, Signer: p.keys.Signer,
		OnChange: p.sandboxes.WakeSoon, OnSettled: p.sandboxes.Wake,
		Fresh: p.lease.Fresh, WaitOpen: p.gate.Wait, Recorder: p.recorder, Clock: clock.RealClock{},
	})
	if err != nil {
		return err
	}
	sandboxes, err := batchsandbox.New(batchsandbox.Config{
		Client: p.mgr.GetClient(), Refill: p.refill, Live: p.mgr.GetAPIReader(), Ledger: p.ledger, Wakes: p.sandboxes,
		Tasks: tasks, Executor: p.executor, Ending: p.own.Ending,
		Fresh: p.lease.Fresh, WaitOpen: p.gate.Wait, Recorder: p.recorder, Clock: clock.RealClock{},
	})
	if err != nil {
		return err
	}
	if err := tasks.SetupWithManager(p.mgr, p.taskWorkers); err != nil {
		return err
	}
	return sandboxes.SetupWithManager(p.mgr, p.sandboxWorkers)
}

// addStart adds what rebuilds the ledger once this process leads.
func (p *parts) addStart() error {
	start, err := startup.New(startup.Config{
		Client: p.mgr.GetClient(), Live: p.mgr.GetAPIReader(), Cache: p.mgr.GetCache(), Ledger: p.ledger,
		Recorder: p.recorder, Clock: clock.RealClock{}, Term: p.lease.Term, Open: p.gate.Open,
		LookAtOwnNamespace: p.own.Look, Namespaces: p.namespaces(),
		Prepare: func(ctx context.Context) error {
			var err error
			// In a namespace where the operator may make pods.
			probed := append(p.namespaces(), p.leaseNamespace)[0]
			if p.restartRules, err = task.RestartRulesKept(ctx, p.mgr.GetClient(), probed); err != nil {
				ctrl.Log.Error(err, "sandboxes are not restarted in place")
			}
			return p.keys.Load(ctx, p.mgr.GetAPIReader(), p.mgr.GetClient(), p.leaseNamespace)
		},
	})
	if err != nil {
		return err
	}
	return p.mgr.Add(start)
}
