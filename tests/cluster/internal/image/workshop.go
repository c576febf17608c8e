package image

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// workshop makes root file systems of Debian packages in a temporary folder, and
// layers of them. The layers are read from the folder until they are stored.
type workshop struct {
	dir string
	// base is the layer that ubuntu and nginx share.
	base v1.Layer
}

// baseRoot is the folder that the base layer is made of.
func (w *workshop) baseRoot() string { return filepath.Join(w.dir, "base") }

// busybox is Debian's static busybox with a link for each of its commands.
func (w *workshop) busybox(ctx context.Context) (v1.Image, error) {
	root := filepath.Join(w.dir, "busybox")
	if err := w.unpack(ctx, root, []string{"busybox-static"}); err != nil {
		return nil, err
	}
	program := "/bin/busybox"
	if _, err := os.Stat(filepath.Join(root, program)); err != nil {
		program = "/usr/bin/busybox" // Where /bin is merged into /usr/bin.
	}
	list, err := exec.CommandContext(ctx, filepath.Join(root, program), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	for dir, mode := range map[string]fs.FileMode{"bin": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o777 | fs.ModeSticky} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, err
		}
		if err := os.Chmod(filepath.Join(root, dir), mode); err != nil {
			return nil, err
		}
	}
	for _, applet := range strings.Fields(string(list)) {
		err := os.Symlink(program, filepath.Join(root, "bin", applet))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	users := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	if err := os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte(users), 0o644); err != nil {
		return nil, err
	}
	layer, err := w.layer(ctx, root)
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Cmd: []string{"sh"}}, layer)
}

// ubuntu is a minimal system of this machine's distribution: bash, coreutils, apt.
func (w *workshop) ubuntu(ctx context.Context) (v1.Image, error) {
	if err := w.makeBase(ctx); err != nil {
		return nil, err
	}
	return assemble(v1.Config{Cmd: []string{"/bin/bash"}}, w.base)
}

// nginxConf is what nginx does in a container: stay in the foreground, log to the
// container's output, serve the default page on port 80.
const nginxConf = `user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	access_log /dev/stdout;
	server {
		listen 80 default_server;
		root /usr/share/nginx/html;
	}
}
`

// nginx is the base with the distribution's nginx on top.
func (w *workshop) nginx(ctx context.Context) (v1.Image, error) {
	if err := w.makeBase(ctx); err != nil {
		return nil, err
	}
	packages, err := w.closure(ctx, "nginx-light")
	if err != nil {
		return nil, err
	}
	root := filepath.Join(w.dir, "nginx")
	if err := w.unpack(ctx, root, packages); err != nil {
		return nil, err
	}
	if err := w.followBase(ctx, root); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "etc", "nginx", "nginx.conf"), []byte(nginxConf), 0o644); err != nil {
		return nil, err
	}
	layer, err := w.layer(ctx, root)
	if err != nil {
		return nil, err
	}
	config := v1.Config{
		Cmd:          []string{"/usr/sbin/nginx", "-g", "daemon off;"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGQUIT",
	}
	return assemble(config, w.base, layer)
}

// makeBase makes the root file system once.
func (w *workshop) makeBase(ctx context.Context) error {
	if w.base != nil {
		return nil
	}
	release, err := codename()
	if err != nil {
		return err
	}
	if err := run(ctx, w.dir, "debootstrap", "--variant=minbase", release, w.baseRoot()); err != nil {
		return err
	}
	if err := trim(w.baseRoot()); err != nil {
		return err
	}
	w.base, err = w.layer(ctx, w.baseRoot())
	return err
}

// followBase moves /lib, /bin, ... into /usr where the base has them as links to
// there. A folder in an upper layer would hide the link, and with it the dynamic
// linker.
func (w *workshop) followBase(ctx context.Context, root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(w.baseRoot(), entry.Name()))
		if err != nil {
			continue // Not a link in the base.
		}
		from, to := filepath.Join(root, entry.Name()), filepath.Join(root, target)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := run(ctx, root, "cp", "-a", from+"/.", to); err != nil {
			return err
		}
		if err := os.RemoveAll(from); err != nil {
			return err
		}
	}
	return nil
}

// trim removes what a container has no use for.
func trim(root string) error {
	for _, pattern := range []string{
		"var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*.log", "var/log/apt/*",
		"usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian",
	} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// closure lists a package and all that it depends on, without what the base has.
func (w *workshop) closure(ctx context.Context, name string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests",
		"--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances", name).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache depends %s: %w", name, err)
	}
	installed, err := exec.CommandContext(ctx, "dpkg-query", "--admindir="+filepath.Join(w.baseRoot(), "var/lib/dpkg"),
		"--show", "--showformat=${Package}\n").Output()
	if err != nil {
		return nil, fmt.Errorf("dpkg-query: %w", err)
	}
	have := strings.Fields(string(installed))
	var packages []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		// Lines without an indent arrow and angle brackets are packages.
		if line == "" || strings.ContainsAny(line, " <:|") || slices.Contains(have, line) || slices.Contains(unneeded, line) {
			continue
		}
		packages = append(packages, line)
	}
	return packages, nil
}

// unneeded are dependencies of packages' installation scripts, which do not run
// here, and of tools that the image has no use for.
var unneeded = []string{"nginx-core", "nginx-extras", "nginx-full", "cdebconf", "iproute2"}

// unpack extracts packages into root, without running their scripts.
func (w *workshop) unpack(ctx context.Context, root string, packages []string) error {
	downloads := root + ".packages"
	for _, dir := range []string{root, downloads} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// apt downloads as the user _apt, if that user may write to the folder.
	download := append([]string{"download", "-o", "APT::Sandbox::User=root"}, packages...)
	if err := run(ctx, downloads, "apt-get", download...); err != nil {
		if err := run(ctx, downloads, "apt-get", "update"); err != nil {
			return err
		}
		if err := run(ctx, downloads, "apt-get", download...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(downloads, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := run(ctx, downloads, "dpkg", "-x", file, root); err != nil {
			return err
		}
	}
	return trim(root)
}

// layer packs a folder, with owners, modes and links as they are.
func (w *workshop) layer(ctx context.Context, root string) (v1.Layer, error) {
	file := root + ".tar"
	if err := run(ctx, w.dir, "tar", "--numeric-owner", "--sort=name", "--one-file-system", "-C", root, "-cf", file, "."); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestSpeed))
}

// run runs a program. When ctx ends, the program is asked to stop and gets time for it, since
// debootstrap mounts /proc in the folder and must unmount it itself.
func run(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w\n%s", program, err, strings.Join(lines[max(0, len(lines)-8):], "\n"))
	}
	return nil
}
