package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/procstat"
)

// ErrContainerNotFound says that no process of the sandbox container can be seen: the
// container is restarting, or the pod does not share its process namespace.
var ErrContainerNotFound = errors.New("no process of the sandbox container found")

// maxEnviron is more than a kernel accepts for arguments and environment.
const maxEnviron = 8 << 20

// container is a sandbox container, seen through its first process.
type container struct {
	pid         int
	root, cwd   *os.File
	env         []string // nil if the process has hidden it
	credentials credentials
}

func (c *container) close() {
	c.root.Close()
	c.cwd.Close()
}

// openContainer finds the first process of the container with that ID (with or
// without "containerd://") and opens what a task needs of it.
func openContainer(id string) (*container, error) {
	if _, bare, found := strings.Cut(id, "://"); found {
		id = bare
	}
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	var first *procstat.Stat
	var firstDir *os.File
	for i, s := range all {
		if s.Zombie() || first != nil && !older(s, *first) {
			continue
		}
		dir, err := openMember(s, id)
		if err != nil {
			continue
		}
		if firstDir != nil {
			firstDir.Close()
		}
		first, firstDir = &all[i], dir
	}
	if first == nil {
		return nil, ErrContainerNotFound
	}
	defer firstDir.Close()
	c, err := readContainer(firstDir)
	if err != nil {
		return nil, fmt.Errorf("process %d of the sandbox container: %w", first.PID, err)
	}
	c.pid = first.PID
	return c, nil
}

// older compares by start time, since pids wrap around; within one tick of the
// clock the lower pid is the older.
func older(a, b procstat.Stat) bool {
	if a.StartTime != b.StartTime {
		return a.StartTime < b.StartTime
	}
	return a.PID < b.PID
}

// openMember opens /proc/PID if that process is in the container. The open directory
// belongs to this very process: it is empty when the process has ended, also if another one
// has its pid by then.
func openMember(s procstat.Stat, id string) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d", s.PID), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/%d", s.PID))
	groups, err := readAt(dir, "cgroup", 64<<10)
	if err == nil && !inContainer(string(groups), id) {
		err = ErrContainerNotFound
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// inContainer looks for the container's ID in the content of /proc/PID/cgroup.
// Seen on cgroup v1: "4:memory:/kubepods/burstable/podX/ID"; on v2 from within
// another container's cgroup namespace: "0::/../ID"; with systemd as the driver:
// "cri-containerd-ID.scope"; and there may be cgroups below it.
func inContainer(groups, id string) bool {
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for component := range strings.SplitSeq(parts[2], "/") {
			component = strings.TrimSuffix(component, ".scope")
			if component == id || strings.HasSuffix(component, "-"+id) {
				return true
			}
		}
	}
	return false
}

func readContainer(dir *os.File) (*container, error) {
	status, err := readAt(dir, "status", 64<<10)
	if err != nil {
		return nil, err
	}
	credentials, err := parseCredentials(string(status))
	if err != nil {
		return nil, err
	}
	environ, err := readAt(dir, "environ", maxEnviron)
	if err != nil {
		return nil, err
	}
	root, err := openPath(dir, "root")
	if err != nil {
		return nil, err
	}
	cwd, err := openPath(dir, "cwd")
	if err != nil { // deleted, or not to be entered: the root will do
		if cwd, err = openPath(dir, "root"); err != nil {
			root.Close()
			return nil, err
		}
	}
	return &container{root: root, cwd: cwd, env: parseEnviron(environ), credentials: credentials}, nil
}

func readAt(dir *os.File, name string, most int64) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, most))
}

func openPath(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}

// parseEnviron returns nil where the process has hidden its environment: nginx,
// postgres and others write their title over it, which leaves runs of NUL bytes
// and pieces of text.
func parseEnviron(data []byte) []string {
	data = bytes.TrimSuffix(data, []byte{0})
	if len(data) == 0 {
		return nil
	}
	var env []string
	for entry := range strings.SplitSeq(string(data), "\x00") {
		name, _, found := strings.Cut(entry, "=")
		if !found || !plausibleName(name) {
			return nil
		}
		env = append(env, entry)
	}
	return env
}

func plausibleName(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return name != ""
}
