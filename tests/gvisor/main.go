// Command containerd-shim-runsc-v1 runs the containers of gVisor pods for containerd. It is
// gVisor's own shim, but for how it is started: that one gives itself the OOM score -999,
// which the kernel refuses without CAP_SYS_RESOURCE, and so no pod starts on a machine that
// lacks it. This one is started as the shim of runc is, which only raises its score.
package main

import (
	"context"

	runc "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/shim"
	runsc "gvisor.dev/gvisor/pkg/shim/v1"
	// Registers the service that answers containerd.
	_ "gvisor.dev/gvisor/pkg/shim/v1/plugin"
)

const name = "io.containerd.runsc.v1"

type manager struct{ shim.Manager }

// Start starts one shim for all containers of a pod.
func (manager) Start(ctx context.Context, id string, opts shim.StartOpts) (shim.BootstrapParams, error) {
	params, err := runc.NewShimManager(name).Start(ctx, id, opts)
	// The version of the task API that gVisor's service speaks; runc's speaks the next one.
	params.Version = 2
	return params, err
}

func main() {
	shim.Run(context.Background(), manager{runsc.NewShimManager(name)})
}
