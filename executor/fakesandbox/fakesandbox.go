// Package fakesandbox runs, for tests, a launcher as it runs in a sandbox container: a
// process of its own with an environment and a working directory of its own. Tests with
// one run in an IPC and a mount namespace of their own, as a pod does: a launcher cleans
// what the containers of a pod share. That needs root.
package fakesandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/fakesandbox/ownnamespaces"
	"github.com/opensandbox/operator/executor/launcher"
)

// Run is what TestMain calls in place of m.Run.
func Run(m *testing.M) int {
	Main()
	return ownnamespaces.Run(m)
}

// command by which the test binary starts itself.
const command = "fake-sandbox"

// Main must be called by TestMain: it does not return in a process that is to become a
// launcher.
func Main() {
	if len(os.Args) == 3 && os.Args[1] == command {
		_ = unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
		_ = launcher.Run(os.Args[2], 3)
		os.Exit(1)
	}
}

// Sandbox is a running launcher.
type Sandbox struct {
	PID int
	// Dir is its working directory.
	Dir string
	cmd *exec.Cmd
}

// New starts a launcher that ends with the test and returns when an executor, which
// offers to connect in the directory, has taken it.
func New(t testing.TB, offerDir string) *Sandbox {
	t.Helper()
	s := &Sandbox{Dir: t.TempDir(), cmd: exec.Command("/proc/self/exe", command, offerDir)}
	s.cmd.Dir, s.cmd.Stderr = s.Dir, os.Stderr
	s.cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "OF_THE_CONTAINER=yes"}
	ready, taken, err := os.Pipe()
	must(t, err)
	defer ready.Close()
	s.cmd.ExtraFiles = []*os.File{taken}
	must(t, s.cmd.Start())
	taken.Close()
	s.PID = s.cmd.Process.Pid
	t.Cleanup(s.Kill)
	_, _ = ready.Read(make([]byte, 1)) // it ends when the launcher closes its end
	return s
}

// Kill ends the launcher, as a sandbox might.
func (s *Sandbox) Kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// Path is the name of a file in its working directory.
func (s *Sandbox) Path(name string) string { return filepath.Join(s.Dir, name) }

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
