// Package fakesandbox makes, for tests, what a task-executor sees of a sandbox
// container: a process in a cgroup that bears the container's ID, in a mount
// namespace of its own with a busybox root file system, with a user, an
// environment and capabilities of its own. It needs root and a static busybox.
package fakesandbox

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultCapabilities are those that container runtimes give.
const DefaultCapabilities = 0xa80425fb

// Options of a sandbox.
type Options struct {
	UID, GID   int
	Groups     []int
	Bounding   uint64 // DefaultCapabilities if 0
	NoNewPrivs bool
	Env        []string
	// HideEnv makes the first process write a title over its environment.
	HideEnv    bool
	WorkingDir string // "/" if empty
}

// Sandbox is a running sandbox.
type Sandbox struct {
	ID   string // with the runtime's prefix, as in a pod's status
	Root string
	PID  int
}

// command by which the test binary starts itself.
const command = "fake-sandbox"

// Main must be called by TestMain: it does not return in a process that is to
// become a sandbox.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == command {
		os.Exit(becomeSandbox())
	}
}

// New starts a sandbox that ends with the test.
func New(t testing.TB, o Options) *Sandbox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces and cgroups")
	}
	if o.Bounding == 0 {
		o.Bounding = DefaultCapabilities
	}
	var id [32]byte
	_, _ = rand.Read(id[:])
	s := &Sandbox{ID: "containerd://" + hex.EncodeToString(id[:]), Root: newRoot(t)}
	cgroup := newCgroup(t, hex.EncodeToString(id[:]))
	s.start(t, o)
	must(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(s.PID)), 0))
	return s
}

func newRoot(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs a static busybox (Debian: busybox-static)")
	}
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "proc", "dev", "etc", "tmp", "work"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	data, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755))
	applets, err := exec.Command(busybox, "--list").Output()
	must(t, err)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5} {
		device := filepath.Join(root, "dev", name)
		must(t, unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(1, minor))))
		must(t, os.Chmod(device, 0o666))
	}
	must(t, os.Symlink("/proc/self/fd/1", filepath.Join(root, "dev/stdout")))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\nagent:x:1000:1000::/:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/only-in-the-sandbox"), []byte("a file of the sandbox\n"), 0o644))
	return root
}

func (s *Sandbox) start(t testing.TB, o Options) {
	t.Helper()
	request, err := json.Marshal(o)
	must(t, err)
	ready, readyEnd, err := os.Pipe()
	must(t, err)
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe", command, s.Root, string(request))
	cmd.ExtraFiles = []*os.File{readyEnd}
	cmd.Stderr = os.Stderr
	cmd.Env = o.Env
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=/bin"}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setsid: true}
	must(t, cmd.Start())
	readyEnd.Close()
	s.PID = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if said, _ := io.ReadAll(ready); len(said) > 0 { // it closes when all is set up
		t.Fatalf("the sandbox did not start: %s", said)
	}
}

// newCgroup makes a cgroup that is named as a container's and goes with the test.
func newCgroup(t testing.TB, name string) string {
	t.Helper()
	var tried []error
	for _, mount := range cgroupMounts(t) {
		dir := filepath.Join(mount, name)
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			t.Cleanup(func() { removeCgroup(dir) })
			return dir
		}
		tried = append(tried, err)
	}
	t.Fatalf("this test needs a cgroup hierarchy that it may write: %v", tried)
	return ""
}

func cgroupMounts(t testing.TB) []string {
	t.Helper()
	file, err := os.Open("/proc/self/mountinfo")
	must(t, err)
	defer file.Close()
	var mounts []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		switch {
		case strings.HasPrefix(after, "cgroup2 "):
			mounts = append([]string{fields[4]}, mounts...)
		case strings.HasPrefix(after, "cgroup ") && (strings.Contains(after, "name=systemd") || strings.Contains(after, "freezer")):
			mounts = append(mounts, fields[4])
		}
	}
	return mounts
}

// removeCgroup waits for its last process to go.
func removeCgroup(dir string) {
	for range 200 {
		if os.Remove(dir) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Path is the name outside of a file in the sandbox.
func (s *Sandbox) Path(name string) string { return filepath.Join(s.Root, name) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BuildLeaderless builds the program of ./leaderless at a path.
func BuildLeaderless(t testing.TB, path string) {
	t.Helper()
	build := exec.Command("go", "build", "-o", path, "github.com/opensandbox/operator/executor/fakesandbox/leaderless")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building leaderless: %v\n%s", err, out)
	}
}
