// Package builds compiles the cluster's programs from the Go modules that the
// repository pins. A program is compiled again only when its pins, its flags or
// the Go version change.
package builds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Program is one thing to compile.
type Program struct {
	// Name is the file's name in the folder of programs.
	Name string
	// Module is the folder of the pinning go.mod, relative to the repository.
	Module string
	// Package is its import path.
	Package string
	// Tags are build tags, LDFlags go to the linker.
	Tags, LDFlags string
	// Source is a folder, relative to Module, whose files are compiled into the program
	// beside the pinned modules.
	Source string
}

const (
	stripped         = "-s -w"
	kubernetesModule = "tests/cluster"
	containerdModule = "hack/tools/containerd"
	cniModule        = "hack/tools/cni"
	kwokModule       = "hack/tools/kwok"
	firewallModule   = "tests/firewall"
	gvisorModule     = "tests/gvisor"
)

func containerd(name string) Program {
	// btrfs needs C headers.
	return Program{Name: name, Module: containerdModule, Package: "github.com/containerd/containerd/v2/cmd/" + name, Tags: "no_btrfs", LDFlags: stripped}
}

func cni(path string) Program {
	return Program{Name: filepath.Join("cni", filepath.Base(path)), Module: cniModule, Package: "github.com/containernetworking/plugins/plugins/" + path, LDFlags: stripped}
}

// Kwok simulates nodes and pods.
var Kwok = []Program{
	{Name: "kwok", Module: kwokModule, Package: "sigs.k8s.io/kwok/cmd/kwok", LDFlags: stripped},
}

// Firewall enforces NetworkPolicies.
var Firewall = []Program{
	{Name: "firewall", Module: firewallModule, Package: ".", LDFlags: stripped, Source: "."},
}

// GVisor is what the node runs pods in gVisor with.
var GVisor = []Program{
	{Name: "runsc", Module: gvisorModule, Package: "gvisor.dev/gvisor/runsc", LDFlags: stripped},
	{Name: "containerd-shim-runsc-v1", Module: gvisorModule, Package: ".", LDFlags: stripped, Source: "."},
}

// Builder compiles programs of one source tree into one folder.
type Builder struct {
	Repo, Bin string
	Out       io.Writer
}

// Ensure compiles those of the programs that are missing or out of date.
func (b *Builder) Ensure(ctx context.Context, programs []Program) error {
	if err := os.MkdirAll(b.Bin, 0o755); err != nil {
		return err
	}
	version, err := goVersion(ctx)
	if err != nil {
		return err
	}
	if stale, _, err := b.stale(programs, version); err != nil || len(stale) == 0 {
		return err
	}
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Look again: another builder may have compiled them while this one waited for the lock.
	stale, keys, err := b.stale(programs, version)
	if err != nil {
		return err
	}
	for i, program := range stale {
		fmt.Fprintf(b.Out, "[%2d/%d] building %s ... ", i+1, len(stale), program.Name)
		began := time.Now()
		if err := b.compile(ctx, program); err != nil {
			fmt.Fprintln(b.Out, "failed")
			return err
		}
		if err := os.WriteFile(b.keyPath(program), []byte(keys[program.Name]), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(b.Out, "%.0f s\n", time.Since(began).Seconds())
	}
	return nil
}

// Key is a digest of everything that a built program was made of.
func (b *Builder) Key(name string) string {
	data, _ := os.ReadFile(b.keyPath(Program{Name: name}))
	return string(data)
}

func (b *Builder) stale(programs []Program, goVersion string) ([]Program, map[string]string, error) {
	var stale []Program
	keys := map[string]string{}
	for _, program := range programs {
		key, err := b.key(program, goVersion)
		if err != nil {
			return nil, nil, err
		}
		keys[program.Name] = key
		_, err = os.Stat(b.path(program))
		if err != nil || b.Key(program.Name) != key {
			stale = append(stale, program)
		}
	}
	return stale, keys, nil
}

func (b *Builder) compile(ctx context.Context, program Program) error {
	// Compile beside the target and rename: the old file may be running.
	next := b.path(program) + ".next"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-tags", program.Tags, "-ldflags", program.LDFlags, "-o", next, program.Package)
	cmd.Dir = filepath.Join(b.Repo, program.Module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program.Package, err, out)
	}
	return os.Rename(next, b.path(program))
}

func (b *Builder) key(program Program, goVersion string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, goVersion, program.Package, program.Tags, program.LDFlags)
	module := filepath.Join(b.Repo, program.Module)
	files := []string{filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum")}
	if program.Source != "" {
		sources, err := filepath.Glob(filepath.Join(module, program.Source, "*.go"))
		if err != nil {
			return "", err
		}
		files = append(files, sources...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (b *Builder) path(program Program) string { return filepath.Join(b.Bin, program.Name) }

func (b *Builder) keyPath(program Program) string {
	return filepath.Join(b.Bin, "."+strings.ReplaceAll(program.Name, "/", "-")+".key")
}

// lock makes two builders of the same folder wait for each other.
func (b *Builder) lock() (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(b.Bin, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		fmt.Fprintf(b.Out, "waiting for another build in %s\n", b.Bin)
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
			file.Close()
			return nil, err
		}
	}
	return func() { file.Close() }, nil
}

func goVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOOS", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	return strings.Join(strings.Fields(string(out)), " "), nil
}
