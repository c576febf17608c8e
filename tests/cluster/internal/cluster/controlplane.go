package cluster

import (
	"context"
	"fmt"
	"strconv"

	"github.com/opensandbox/operator/tests/cluster/internal/pki"
	"github.com/opensandbox/operator/tests/cluster/internal/process"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

const loopback = "127.0.0.1"

// ensureSecrets creates certificates, tokens and kubeconfigs at the first start.
func (c *Cluster) ensureSecrets() error {
	if !pki.Exists(c.pki()) {
		ips := []string{loopback, c.HostIP(), c.NodeIP(), c.KubernetesServiceIP()}
		names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
		if err := pki.Create(c.pki(), ips, names, users); err != nil {
			return fmt.Errorf("create the cluster's secrets: %w", err)
		}
	}
	for _, user := range users {
		path := c.Path("pki", user.File+".kubeconfig")
		if err := pki.WriteKubeconfig(c.pki(), path, c.APIServerURL(), c.Name(), user); err != nil {
			return err
		}
	}
	return pki.WriteKubeconfig(c.pki(), c.Kubeconfig(), c.APIServerURL(), c.Name(), admin)
}

// startControlPlane starts etcd, the API server and the two controllers, each as
// soon as what it needs answers.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.ensureSecrets(); err != nil {
		return err
	}
	if err := c.launch(ctx, c.etcd(), c.etcdAnswers); err != nil {
		return err
	}
	apiServer, err := c.apiServer()
	if err != nil {
		return err
	}
	if err := c.launch(ctx, apiServer, c.apiServerAnswers); err != nil {
		return err
	}
	if err := c.launch(ctx, c.controllerManager(), c.controllerManagerAnswers); err != nil {
		return err
	}
	schedulerSpec, err := c.scheduler()
	if err != nil {
		return err
	}
	return c.launch(ctx, schedulerSpec, c.schedulerAnswers)
}

// launch makes sure that a process runs and waits until it answers.
func (c *Cluster) launch(ctx context.Context, spec *process.Spec, answers check) error {
	return c.step(spec.Name, func() (string, error) {
		outcome, err := c.processes.Ensure(spec)
		if err != nil {
			return "", err
		}
		if answers != nil {
			err = c.await(ctx, spec.Name, answers)
		}
		return string(outcome), err
	})
}

func (c *Cluster) spec(name string, version string, args ...string) *process.Spec {
	return &process.Spec{Name: name, Path: c.Program(name), Version: c.builder.Key(name) + version, Args: args}
}

func (c *Cluster) etcd() *process.Spec {
	client := fmt.Sprintf("https://%s:%d", loopback, c.Port(settings.PortEtcd))
	peer := fmt.Sprintf("https://%s:%d", loopback, c.Port(settings.PortEtcdPeer))
	args := []string{
		"--name=opensandbox",
		"--data-dir=" + c.Path("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=opensandbox=" + peer,
		"--listen-metrics-urls=" + fmt.Sprintf("http://%s:%d", loopback, c.Port(settings.PortEtcdMetrics)),
		// Other users of this machine must not read the cluster's secrets.
		"--client-cert-auth", "--trusted-ca-file=" + c.Path("pki", "ca.crt"),
		"--cert-file=" + c.Path("pki", "server.crt"), "--key-file=" + c.Path("pki", "server.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + c.Path("pki", "ca.crt"),
		"--peer-cert-file=" + c.Path("pki", "server.crt"), "--peer-key-file=" + c.Path("pki", "server.key"),
		"--quota-backend-bytes=" + strconv.Itoa(4<<30),
		"--auto-compaction-retention=5m",
		"--log-level=warn",
	}
	if !c.Fsync {
		args = append(args, "--unsafe-no-fsync")
	}
	return c.spec("etcd", "", args...)
}

func (c *Cluster) apiServer() (*process.Spec, error) {
	policy := c.Path("etc", "audit-policy.yaml")
	version, err := write(policy, "audit-policy.yaml", c.values())
	if err != nil {
		return nil, err
	}
	args := []string{
		"--etcd-servers=" + fmt.Sprintf("https://%s:%d", loopback, c.Port(settings.PortEtcd)),
		"--etcd-cafile=" + c.Path("pki", "ca.crt"),
		"--etcd-certfile=" + c.Path("pki", "client.crt"), "--etcd-keyfile=" + c.Path("pki", "client.key"),
		"--bind-address=" + c.APIServerIP(),
		"--secure-port=" + strconv.Itoa(c.Port(settings.PortAPIServer)),
		// The API server refuses to advertise a loopback address, even where no pods read it.
		"--advertise-address=" + c.HostIP(),
		"--tls-cert-file=" + c.Path("pki", "server.crt"), "--tls-private-key-file=" + c.Path("pki", "server.key"),
		"--client-ca-file=" + c.Path("pki", "ca.crt"),
		"--token-auth-file=" + c.Path("pki", "tokens.csv"),
		"--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=" + c.ServiceSubnet(),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.Path("pki", "service-account.pub"),
		"--service-account-signing-key-file=" + c.Path("pki", "service-account.key"),
		"--allow-privileged",
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + c.Path("pki", "ca.crt"),
		"--kubelet-client-certificate=" + c.Path("pki", "client.crt"), "--kubelet-client-key=" + c.Path("pki", "client.key"),
		"--audit-policy-file=" + policy,
		"--audit-log-path=" + c.Path("audit.log"),
		// One file: a test that counts writes would miss those in a file that was rotated.
		"--audit-log-maxsize=4096", "--audit-log-maxbackup=1",
		"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
	}
	if c.ControlPlaneOnly {
		// Nobody can reach the API server through its service: there is no node.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return c.spec("kube-apiserver", version, args...), nil
}

func (c *Cluster) controllerManager() *process.Spec {
	kubeconfig := c.Path("pki", controllerManager.File+".kubeconfig")
	return c.spec("kube-controller-manager", "",
		"--kubeconfig="+kubeconfig,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--use-service-account-credentials",
		"--service-account-private-key-file="+c.Path("pki", "service-account.key"),
		"--root-ca-file="+c.Path("pki", "ca.crt"),
		"--cluster-signing-cert-file="+c.Path("pki", "ca.crt"), "--cluster-signing-key-file="+c.Path("pki", "ca.key"),
		"--leader-elect=false",
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--bind-address="+loopback,
		"--secure-port="+strconv.Itoa(c.Port(settings.PortControllerManager)),
		"--tls-cert-file="+c.Path("pki", "server.crt"), "--tls-private-key-file="+c.Path("pki", "server.key"),
	)
}

func (c *Cluster) scheduler() (*process.Spec, error) {
	config := c.Path("etc", "scheduler.yaml")
	version, err := write(config, "scheduler.yaml", c.values())
	if err != nil {
		return nil, err
	}
	kubeconfig := c.Path("pki", scheduler.File+".kubeconfig")
	return c.spec("kube-scheduler", version,
		"--config="+config,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--bind-address="+loopback,
		"--secure-port="+strconv.Itoa(c.Port(settings.PortScheduler)),
		"--tls-cert-file="+c.Path("pki", "server.crt"), "--tls-private-key-file="+c.Path("pki", "server.key"),
	), nil
}
