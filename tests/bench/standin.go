package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/controllers/webhook"
	"github.com/opensandbox/operator/tests/bench/results"
)

// standIn runs the operator's program on this machine in place of the deployed one, with its
// flags, its environment and as its service account. Executors on loopback addresses can be
// reached from here and not from a pod, and processes of our own can be killed and looked at.
type standIn struct {
	b       *bench
	program string
	// directory is for what the processes read and write, in that of the cluster: so the meter
	// counts them among its processes.
	directory string
	deployed  appsv1.Deployment
	// webhooks is the configuration that was taken away, nil where there was none.
	webhooks *admissionregistrationv1.ValidatingWebhookConfiguration
	running  []*replica
}

// identity is the service account of an operator. Its namespace is the operator's.
type identity = client.ObjectKey

// deployedIdentity is that of the deployed operator.
var deployedIdentity = identity{Namespace: deployment.Namespace, Name: "opensandbox-controller-manager"}

// roleBinding gives the role to the operator in a namespace.
func roleBinding(as identity, namespace, kind, role string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "operator-"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: as.Namespace, Name: as.Name}},
	}
}

// tokenLasts is longer than any run.
const tokenLasts = 24 * time.Hour

// replaceOperator stops the deployed operator. What it returns is to be restored, with an error
// too.
func (b *bench) replaceOperator(ctx context.Context, program string) (*standIn, error) {
	s := &standIn{b: b, program: program}
	if err := b.api.Get(ctx, deployment, &s.deployed); err != nil {
		return s, fmt.Errorf("looking for the operator that 'make deploy' deploys: %w", err)
	}
	var err error
	if s.directory, err = os.MkdirTemp(results.ClusterDirectory(), "operator-"); err != nil {
		return s, fmt.Errorf("making a directory for the operator: %w", err)
	}
	if s.webhooks, err = b.removeWebhooks(ctx); err != nil {
		return s, err
	}
	return s, b.scaleOperator(ctx, 0)
}

// start starts one replica, which has those flags beside the deployed ones. The name is that of
// its log.
func (s *standIn) start(ctx context.Context, name string, as identity, flags ...string) (*replica, error) {
	kubeconfig, err := s.kubeconfig(ctx, as)
	if err != nil {
		return nil, err
	}
	metrics, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	output, err := os.Create(filepath.Join(filepath.Dir(s.program), "manager."+name+".log"))
	if err != nil {
		return nil, fmt.Errorf("opening the operator's log: %w", err)
	}
	container := &s.deployed.Spec.Template.Spec.Containers[0]
	r := &replica{name: name, metrics: metrics, log: &logLines{file: output}, ended: make(chan struct{})}
	r.command = exec.Command(s.program, container.Args...) // stop ends it in order
	r.command.Args = append(r.command.Args, "--health-probe-bind-address=0", "--webhook-port=0",
		"--metrics-secure=false", "--metrics-bind-address="+metrics, "--kubeconfig="+kubeconfig)
	r.command.Args = append(r.command.Args, flags...)
	r.command.Env = append(os.Environ(), "POD_NAMESPACE="+as.Namespace)
	for _, e := range container.Env {
		if e.ValueFrom == nil && e.Name != "GOMEMLIMIT" {
			r.command.Env = append(r.command.Env, e.Name+"="+e.Value)
		}
	}
	if limit := container.Resources.Limits.Memory().Value(); limit > 0 {
		r.command.Env = append(r.command.Env, fmt.Sprintf("GOMEMLIMIT=%d", limit/(1<<20)*1_000_000))
	}
	r.command.Stderr = r.log
	r.started = time.Now()
	if err := r.command.Start(); err != nil {
		return nil, fmt.Errorf("starting the operator: %w", errors.Join(err, output.Close()))
	}
	s.running = append(s.running, r)
	go r.wait(output)
	return r, nil
}

// lead starts one replica and waits until it leads: a deployed one that is told to end goes on for
// a while.
func (s *standIn) lead(ctx context.Context) error {
	r, err := s.start(ctx, "bench", deployedIdentity)
	if err != nil {
		return err
	}
	_, err = r.untilSaid(ctx, tookOver, roundPatience)
	return err
}

// Names of the operator's replicas where what they use is counted.
const (
	ofLeader  = "operator, leader"
	ofStandby = "operator, standby"
)

// nameOf is what the replica with that process is called, and nothing for all others.
func (s *standIn) nameOf(pid int) string {
	for _, r := range s.running {
		if _, leads := r.log.said(tookOver); r.command.Process.Pid == pid && leads {
			return ofLeader
		} else if r.command.Process.Pid == pid {
			return ofStandby
		}
	}
	return ""
}

// kubeconfig writes one for the service account.
func (s *standIn) kubeconfig(ctx context.Context, as identity) (string, error) {
	account := &corev1.ServiceAccount{}
	account.Namespace, account.Name = as.Namespace, as.Name
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: ptr.To(int64(tokenLasts / time.Second)),
	}}
	if err := s.b.api.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("asking for a token of the operator's service account: %w", err)
	}
	config, err := clientcmd.LoadFromFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		return "", err
	}
	if err := clientcmdapi.MinifyConfig(config); err != nil {
		return "", err
	}
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	}
	file := filepath.Join(s.directory, as.Namespace+".kubeconfig")
	return file, clientcmd.WriteToFile(*config, file)
}

// freeAddress is one that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// stop ends all replicas in order.
func (s *standIn) stop() error {
	var errs []error
	for _, r := range s.running {
		_ = r.signal(syscall.SIGTERM) // how it ended says more
	}
	for _, r := range s.running {
		<-r.ended
		errs = append(errs, r.failure())
	}
	s.running = nil
	return errors.Join(errs...)
}

// restore ends the replicas and brings the deployed operator back.
func (s *standIn) restore(ctx context.Context) error {
	errs := []error{s.stop()}
	if s.directory != "" {
		errs = append(errs, os.RemoveAll(s.directory))
	}
	if replicas := ptr.Deref(s.deployed.Spec.Replicas, 0); replicas > 0 {
		errs = append(errs, s.b.scaleOperator(ctx, replicas))
	}
	if s.webhooks != nil {
		s.webhooks.ResourceVersion = ""
		if err := s.b.api.Create(ctx, s.webhooks); err != nil {
			errs = append(errs, fmt.Errorf("bringing back ValidatingWebhookConfiguration %s: %w", s.webhooks.Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeWebhooks takes away the configuration of the validating webhooks: while the
// deployed operator is away, the API server would try for seconds to reach them at every
// create.
func (b *bench) removeWebhooks(ctx context.Context) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	webhooks := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	err := b.api.Get(ctx, client.ObjectKey{Name: webhook.ValidatingName}, webhooks)
	if err == nil {
		err = b.api.Delete(ctx, webhooks)
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("taking ValidatingWebhookConfiguration %s away: %w", webhook.ValidatingName, err)
	}
	return webhooks, nil
}

// scaleOperator sets the replicas of the deployed operator and waits until so many are
// ready.
func (b *bench) scaleOperator(ctx context.Context, replicas int32) error {
	deployed := &appsv1.Deployment{}
	deployed.Namespace, deployed.Name = deployment.Namespace, deployment.Name
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if err := b.api.Patch(ctx, deployed, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, roundPatience, true, func(ctx context.Context) (bool, error) {
		err := b.api.Get(ctx, deployment, deployed)
		return err == nil && deployed.Status.ReadyReplicas == replicas && deployed.Status.Replicas == replicas, err
	})
}

// replica is one process of the operator.
type replica struct {
	name    string
	command *exec.Cmd
	// metrics is the address of its metrics.
	metrics string
	log     *logLines
	started time.Time
	ended   chan struct{} // closed when the process has ended
	killed  bool
	err     error // of the process, once it has ended
}

func (r *replica) wait(output *os.File) {
	r.err = errors.Join(r.command.Wait(), output.Close())
	close(r.ended)
}

func (r *replica) signal(s syscall.Signal) error {
	r.killed = r.killed || s == syscall.SIGKILL
	return r.command.Process.Signal(s)
}

// alive says that the process has not ended.
func (r *replica) alive() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// failure is how the process ended, if not as it was told to.
func (r *replica) failure() error {
	if r.err == nil || r.killed {
		return nil
	}
	return fmt.Errorf("the operator ended with %w: see the log %s", r.err, r.log.file.Name())
}

// What the operator says in its log.
const (
	// cachesSynced: the election begins once the caches are filled.
	cachesSynced = "Attempting to acquire leader lease..."
	toldToEnd    = "told to end"
	tookOver     = "took over"
)

// untilSaid waits until the replica has written that message and returns when it did first.
func (r *replica) untilSaid(ctx context.Context, message string, patience time.Duration) (at time.Time, err error) {
	err = wait.PollUntilContextTimeout(ctx, 5*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		var said bool
		if at, said = r.log.said(message); said {
			return true, nil
		}
		if !r.alive() {
			return false, fmt.Errorf("it ended: %w", r.err)
		}
		return false, nil
	})
	if err != nil {
		return at, fmt.Errorf("replica %s has not said %q: %w", r.name, message, err)
	}
	return at, nil
}

// logLines keeps a log and when each message was first in it.
type logLines struct {
	file *os.File

	mu    sync.Mutex // guards the fields below
	rest  []byte
	first map[string]time.Time
}

// Write implements io.Writer.
func (l *logLines) Write(p []byte) (int, error) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return l.file.Write(p)
		}
		l.rest = rest
		var entry struct{ Msg string }
		if json.Unmarshal(line, &entry) != nil {
			continue // not all that a process writes is of its log
		}
		if l.first == nil {
			l.first = map[string]time.Time{}
		}
		if _, known := l.first[entry.Msg]; !known {
			l.first[entry.Msg] = now
		}
	}
}

func (l *logLines) said(message string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, said := l.first[message]
	return at, said
}
