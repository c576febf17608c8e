package cluster

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/opensandbox/operator/tests/cluster/internal/builds"
	"github.com/opensandbox/operator/tests/cluster/internal/settings"
)

const (
	// kwokAnnotation marks the nodes that kwok simulates; kwokTaint keeps ordinary
	// pods away from them.
	kwokAnnotation = "kwok.x-k8s.io/node"
	kwokTaint      = "kwok.x-k8s.io/node"
	kwokValue      = "fake"
	// kwokSubnet gives simulated pods loopback addresses, so that one test program
	// can stand in for all of them.
	kwokSubnet = "127.100.0.0/16"
)

// kwokFeatures are features that a kubelet of this version declares in the status of its
// node and that pods of the operator use. The scheduler puts such a pod only on nodes that
// declare them.
var kwokFeatures = []string{"RestartAllContainersOnContainerExits"}

// startKwok starts kwok and creates the nodes that it simulates. Nodes from an
// earlier, larger number stay.
func (c *Cluster) startKwok(ctx context.Context, client kubernetes.Interface) error {
	if err := c.Build(ctx, builds.Kwok); err != nil {
		return err
	}
	stages, err := c.builder.KwokStages(ctx)
	if err != nil {
		return err
	}
	spec := c.spec("kwok", "",
		"--kubeconfig="+c.Path("pki", kwok.File+".kubeconfig"),
		"--config="+stages,
		"--manage-all-nodes=false",
		"--manage-nodes-with-annotation-selector="+kwokAnnotation+"="+kwokValue,
		"--node-ip="+loopback,
		"--cidr="+kwokSubnet,
		"--server-address="+fmt.Sprintf("%s:%d", loopback, c.Port(settings.PortKwok)),
	)
	if err := c.launch(ctx, spec, c.kwokAnswers); err != nil {
		return err
	}
	declare, err := json.Marshal(map[string]any{"status": map[string]any{"declaredFeatures": kwokFeatures}})
	if err != nil {
		return err
	}
	return c.step(fmt.Sprintf("%d simulated nodes", c.FakeNodes), func() (string, error) {
		for i := range c.FakeNodes {
			node := fakeNode(fmt.Sprintf("fake-node-%d", i))
			_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				_, err = client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, declare, metav1.PatchOptions{}, "status")
			}
			if err != nil {
				return "", err
			}
		}
		for i := range c.FakeNodes {
			name := fmt.Sprintf("fake-node-%d", i)
			if err := c.await(ctx, "kwok", nodeReady(client, name)); err != nil {
				return "", err
			}
		}
		return "ready", nil
	})
}

func (c *Cluster) kwokAnswers(ctx context.Context) error {
	return c.get(ctx, fmt.Sprintf("http://%s:%d/healthz", loopback, c.Port(settings.PortKwok)))
}

func fakeNode(name string) *corev1.Node {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("1k"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
		corev1.ResourcePods:   resource.MustParse("10k"),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{kwokAnnotation: kwokValue, "node.alpha.kubernetes.io/ttl": "0"},
			Labels: map[string]string{
				"type":                          "kwok",
				corev1.LabelHostname:            name,
				corev1.LabelOSStable:            "linux",
				corev1.LabelArchStable:          "amd64",
				"kubernetes.io/role":            "agent",
				"node-role.kubernetes.io/agent": "",
			},
		},
		Spec:   corev1.NodeSpec{Taints: []corev1.Taint{{Key: kwokTaint, Value: kwokValue, Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: capacity, DeclaredFeatures: kwokFeatures},
	}
}
