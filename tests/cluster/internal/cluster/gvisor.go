package cluster

import (
	"context"
	"fmt"

	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// The RuntimeClass that pods name to run in gVisor, and containerd's name for it.
const (
	gVisorClass   = "gvisor"
	gVisorHandler = "runsc"
)

// offerGVisor makes the RuntimeClass, on a machine where gVisor can run. Elsewhere each pod
// in gVisor would wait for a sandbox that the kubelet tries to make over and over.
func (c *Cluster) offerGVisor(ctx context.Context, client kubernetes.Interface) error {
	trial := []string{"--platform=systrap", "--network=none", "--ignore-cgroups", "--root=" + c.Path("runsc-trial"), "do", "true"}
	if _, err := c.runInNode("", c.Program("runsc"), trial...); err != nil {
		return fmt.Errorf("gVisor does not run on this machine: %w", err)
	}
	class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: gVisorClass}, Handler: gVisorHandler}
	_, err := client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
