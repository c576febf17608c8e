package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/opensandbox/operator/tests/cluster/internal/pki"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

const (
	// patience bounds each step. A busy machine with two cores needs a part of it.
	patience = 90 * time.Second
	// interval is the time between two checks, which are cheap and local.
	interval = 50 * time.Millisecond
)

// check returns nil when the thing is ready, else why not.
type check func(ctx context.Context) error

// await repeats the check until it succeeds. It gives up early when the process of that name
// has died; an empty name stands for none.
func (c *Cluster) await(ctx context.Context, name string, ready check) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if name != "" {
			if err := c.processes.Check(name); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w; see %s", patience, last, c.Path("logs"))
		case <-tick.C:
		}
	}
}

func (c *Cluster) etcdAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("http://%s:%d/readyz", loopback, c.Port(settings.PortEtcdMetrics)))
}

func (c *Cluster) apiServerAnswers(ctx context.Context) error {
	return c.get(ctx, c.APIServerURL()+"/readyz")
}

func (c *Cluster) controllerManagerAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("https://%s:%d/healthz", loopback, c.Port(settings.PortControllerManager)))
}

func (c *Cluster) schedulerAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("https://%s:%d/healthz", loopback, c.Port(settings.PortScheduler)))
}

func (c *Cluster) kubeletAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("http://%s:10248/healthz", c.NodeIP()))
}

// kubeProxyAnswers is true once kube-proxy has written its first rules.
func (c *Cluster) kubeProxyAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("http://%s:10256/healthz", c.NodeIP()))
}

func (c *Cluster) registryAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("http://%s/v2/", c.RegistryAddress()))
}

// serviceAnswers asks the API server by its ClusterIP, through the node.
func (c *Cluster) serviceAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("https://%s/readyz", c.KubernetesServiceIP()))
}

func (c *Cluster) containerdAnswers(context.Context) error {
	_, err := os.Stat(c.containerdSocket())
	if err != nil {
		return err
	}
	return c.ctr("version")
}

// get fails unless the URL answers with 200.
func (c *Cluster) get(ctx context.Context, url string) error {
	_, err := c.fetch(ctx, url)
	return err
}

// fetch gets what a URL has, trusting the cluster's own authority only.
func (c *Cluster) fetch(ctx context.Context, url string) ([]byte, error) {
	ca, err := os.ReadFile(c.Path("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	token, err := pki.Token(c.pki(), admin)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	// A connection for each request: what is asked may be restarting.
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if request.URL.Scheme == "https" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s %.500s", url, response.Status, body)
	}
	return body, nil
}

func (c *Cluster) client() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 200, 400
	return kubernetes.NewForConfig(config)
}

// defaultAccountExists is needed before the first pod can be created.
func defaultAccountExists(client kubernetes.Interface) check {
	return func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	}
}

func nodeReady(client kubernetes.Interface, name string) check {
	return func(ctx context.Context) error {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return errors.New("the kubelet has not registered the node")
		}
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type != corev1.NodeReady {
				continue
			}
			if condition.Status == corev1.ConditionTrue && !hasTaint(node, corev1.TaintNodeNotReady) {
				return nil
			}
			return fmt.Errorf("node %s: %s %s", name, condition.Reason, condition.Message)
		}
		return fmt.Errorf("node %s has no Ready condition yet", name)
	}
}

// podsKnown is true when the kubelet knows all pods of its node: right after a
// restart it refuses logs and exec until it has listed them.
func (c *Cluster) podsKnown(client kubernetes.Interface) check {
	return func(ctx context.Context) error {
		onNode := metav1.ListOptions{FieldSelector: "spec.nodeName=" + settings.NodeName, ResourceVersion: "0"}
		want, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, onNode)
		if err != nil {
			return err
		}
		body, err := c.fetch(ctx, fmt.Sprintf("https://%s:10250/pods", c.NodeIP()))
		if err != nil {
			return err
		}
		var known corev1.PodList
		if err := json.Unmarshal(body, &known); err != nil {
			return fmt.Errorf("the kubelet's pods: %w", err)
		}
		if len(known.Items) < len(want.Items) {
			return fmt.Errorf("the kubelet knows %d of %d pods", len(known.Items), len(want.Items))
		}
		return nil
	}
}

// hasTaint says whether a node still has a taint that keeps pods away although its
// condition already is Ready.
func hasTaint(node *corev1.Node, key string) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == key })
}
