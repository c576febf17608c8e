// Package nodespace makes the place where the node's programs run: a network
// namespace and a mount namespace of its own, linked to the host by one pair of
// virtual interfaces.
//
// The node needs them because kubelet, kube-proxy and containerd use fixed names
// (the nftables table kube-proxy, /run/containerd/s, /var/log/containers, ...).
// In namespaces these neither touch the host nor collide with another cluster on
// it, and the kernel takes all mounts and firewall rules away with the last
// process.
package nodespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Space is one node's pair of namespaces.
type Space struct {
	// Name is the name of the network namespace, as 'ip netns' shows it.
	Name string
	// Dir holds the handle of the mount namespace. It must not survive a restart of the
	// machine, as the namespace does not.
	Dir string
	// Network says how the node is linked to the host.
	Network Network
	// Mounts are bind mounts inside the node: from a path of the host to the path
	// that the node's programs expect.
	Mounts []Bind
}

// Bind is one folder of the host that the node sees at another path.
type Bind struct {
	// From is created if it is missing. Empty means new memory-backed storage.
	From string
	To   string
}

func (s *Space) netPath() string   { return filepath.Join("/run/netns", s.Name) }
func (s *Space) mountPath() string { return filepath.Join(s.Dir, "mnt") }

// Ensure creates what is missing. It is safe to call it on a complete space.
func (s *Space) Ensure() error {
	if err := s.ensureNetworkNamespace(); err != nil {
		return fmt.Errorf("network namespace %s: %w", s.Name, err)
	}
	if err := s.ensureLink(); err != nil {
		return fmt.Errorf("link to network namespace %s: %w", s.Name, err)
	}
	if err := s.ensureMountNamespace(); err != nil {
		return fmt.Errorf("mount namespace of %s: %w", s.Name, err)
	}
	return nil
}

// Remove takes the namespaces away. The processes in them must have ended.
//
// The empty folders that serve as mount points stay on the host: removing one would
// silently unmount it in every other cluster that runs here.
func (s *Space) Remove() error {
	errs := []error{s.removeLink()}
	for _, path := range []string{s.mountPath(), s.Dir, s.netPath()} {
		errs = append(errs, detachAll(path))
	}
	errs = append(errs, remove(s.netPath()), os.RemoveAll(s.Dir))
	return errors.Join(errs...)
}

// Do calls start in the node's namespaces: a program started by it runs there.
//
// It uses a thread of its own that is thrown away, because a thread that entered a
// mount namespace must never run anything else.
func (s *Space) Do(start func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := s.enter(); err != nil {
			result <- fmt.Errorf("enter the node %s: %w", s.Name, err)
			return
		}
		result <- start()
	}()
	return <-result
}

func (s *Space) enter() error {
	if err := setns(s.netPath(), unix.CLONE_NEWNET); err != nil {
		return err
	}
	// A thread that shares its working directory with others may not change its
	// mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return setns(s.mountPath(), unix.CLONE_NEWNS)
}

func setns(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("setns %s: %w", path, err)
	}
	return nil
}

// isNamespace says whether a namespace is mounted on the file.
func isNamespace(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

func (s *Space) ensureNetworkNamespace() error {
	if isNamespace(s.netPath()) {
		return nil
	}
	if err := touch(s.netPath()); err != nil {
		return err
	}
	return onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		return unix.Mount(self, s.netPath(), "", unix.MS_BIND, "")
	})
}

func (s *Space) ensureMountNamespace() error {
	if isNamespace(s.mountPath()) {
		return nil
	}
	if err := touch(s.mountPath()); err != nil {
		return err
	}
	// The handle of a mount namespace can only be kept on a private mount.
	if err := unix.Mount(s.Dir, s.Dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", s.Dir, err)
	}
	if err := unix.Mount("", s.Dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", s.Dir, err)
	}
	return s.makeMountNamespace()
}

// makeMountNamespace makes and fills a mount namespace on one thread. Another thread, which
// stays in the host's namespace, stores its handle there.
func (s *Space) makeMountNamespace() error {
	ready, kept, result := make(chan int, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		result <- onThrowawayThread(func() error {
			defer close(ready)
			if err := setns(s.netPath(), unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := s.mountAll(); err != nil {
				return err
			}
			ready <- unix.Gettid()
			<-kept
			return nil
		})
	}()
	tid, ok := <-ready
	if !ok {
		return <-result
	}
	err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", tid), s.mountPath(), "", unix.MS_BIND, "")
	close(kept)
	if err != nil {
		return fmt.Errorf("keep %s: %w", s.mountPath(), err)
	}
	return <-result
}

func (s *Space) mountAll() error {
	// Later mounts of the host appear in the node, and those of the node do not appear on
	// the host. Within the node mounts are shared, or volumes with mount propagation fail.
	for _, flag := range []uintptr{unix.MS_SLAVE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", flag|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("change the propagation of /: %w", err)
		}
	}
	for _, bind := range s.Mounts {
		if err := bind.mount(); err != nil {
			return fmt.Errorf("mount %s: %w", bind.To, err)
		}
	}
	// /sys shows the network interfaces of the namespace that it was mounted in.
	return s.remountSys()
}

// remountSys puts a sysfs of the node's network namespace over the host's and
// carries the host's mounts below it (control groups) along.
func (s *Space) remountSys() error {
	keep := filepath.Join(s.Dir, "cgroup")
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", keep, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /sys/fs/cgroup: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return unix.Mount(keep, "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
}

func (b Bind) mount() error {
	if err := os.MkdirAll(b.To, 0o755); err != nil {
		return err
	}
	if b.From == "" {
		return unix.Mount("tmpfs", b.To, "tmpfs", 0, "mode=0755")
	}
	if err := os.MkdirAll(b.From, 0o755); err != nil {
		return err
	}
	return unix.Mount(b.From, b.To, "", unix.MS_BIND, "")
}

func onThrowawayThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // Never unlocked: the thread ends with the goroutine.
		result <- f()
	}()
	return <-result
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// detachAll takes all mounts off a path.
func detachAll(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
