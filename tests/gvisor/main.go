// Command containerd-shim-runsc-v1 runs a container of a gVisor pod for containerd. It is
// gVisor's own shim, but for how it is started: that one gives itself the OOM score -999,
// which the kernel refuses without CAP_SYS_RESOURCE, so that no pod starts on a machine that
// lacks it. This one keeps the score that it has.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"
	runsc "gvisor.dev/gvisor/pkg/shim/v1"
	// Registers the service that answers containerd.
	_ "gvisor.dev/gvisor/pkg/shim/v1/plugin"
)

// addressFile, in the container's bundle, is where the service finds its socket when it
// removes it.
const addressFile = "address"

type manager struct{ shim.Manager }

// Start starts the service of one container and says where it answers.
func (manager) Start(ctx context.Context, id string, opts shim.StartOpts) (shim.BootstrapParams, error) {
	address, err := start(ctx, id, opts)
	if err != nil {
		return shim.BootstrapParams{}, fmt.Errorf("start the shim of %s: %w", id, err)
	}
	return shim.BootstrapParams{Version: 2, Address: address, Protocol: "ttrpc"}, nil
}

func start(ctx context.Context, id string, opts shim.StartOpts) (address string, err error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if address, err = shim.SocketAddress(ctx, opts.Address, id, opts.Debug); err != nil {
		return "", err
	}
	socket, err := shim.NewSocket(address)
	if err != nil {
		return "", err
	}
	// The service inherits it. containerd connects when this program has ended.
	listener, err := socket.File()
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(addressFile, []byte(address), 0o644); err != nil {
		return "", err
	}
	service := exec.Command(self, "-namespace", namespace, "-address", opts.Address, "-id", id)
	service.ExtraFiles = []*os.File{listener}
	service.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return address, service.Start()
}

func main() {
	shim.Run(context.Background(), manager{runsc.NewShimManager("io.containerd.runsc.v1")})
}
