// Package cgroup makes the control group that holds everything the node runs, and
// ends everything in it. It works with version 1 (one tree for each controller) and
// version 2 (one tree) of the kernel's control groups.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const mountPoint = "/sys/fs/cgroup"

// programs is the child group for the node's own programs. Pods are beside it,
// never below it: in version 2 a group that has processes may not have children
// with controllers.
const programs = "node"

// Group is the node's control group in all trees.
type Group struct {
	name  string
	trees []tree
}

type tree struct {
	path    string
	unified bool
}

// Open finds the trees of control groups on this machine. It creates nothing.
func Open(name string) (*Group, error) {
	trees, err := findTrees()
	if err != nil {
		return nil, err
	}
	if len(trees) == 0 {
		return nil, fmt.Errorf("no control groups are mounted below %s", mountPoint)
	}
	return &Group{name: name, trees: trees}, nil
}

// findTrees returns the unified tree of version 2 if it is the only one. Otherwise it returns
// all trees of version 1, and the unified one beside them, which has no controllers then:
// runc finds the processes of a container by it.
func findTrees() ([]tree, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var v1 []tree
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// "36 35 98:0 / /sys/fs/cgroup/cpu rw,... - cgroup cgroup rw,cpu"
		fields := strings.Fields(lines.Text())
		dash := slices.Index(fields, "-")
		if dash < 0 || dash+1 >= len(fields) || len(fields) < 5 {
			continue
		}
		path, kind := fields[4], fields[dash+1]
		switch {
		case kind == "cgroup2" && path == mountPoint:
			return []tree{{path: path, unified: true}}, nil
		case strings.HasPrefix(kind, "cgroup") && filepath.Dir(path) == mountPoint:
			v1 = append(v1, tree{path: path})
		}
	}
	return v1, lines.Err()
}

func (g *Group) dir(t tree, names ...string) string {
	return filepath.Join(append([]string{t.path, g.name}, names...)...)
}

// Ensure creates the group. The kubelet refuses a cgroupRoot that does not exist.
func (g *Group) Ensure() error {
	for _, t := range g.trees {
		if err := g.ensureIn(t); err != nil {
			return fmt.Errorf("control group %s: %w", g.dir(t), err)
		}
	}
	return nil
}

func (g *Group) ensureIn(t tree) error {
	if t.unified {
		if err := enableControllers(t.path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(g.dir(t, programs), 0o755); err != nil {
		return err
	}
	if t.unified {
		return enableControllers(g.dir(t))
	}
	// A new group of version 1's cpuset has no CPUs and no memory and refuses processes
	// until it has some, so it gets those of its parent.
	for _, dir := range []string{g.dir(t), g.dir(t, programs)} {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(dir, file); err != nil {
				return err
			}
		}
	}
	return nil
}

func inherit(dir, file string) error {
	own, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(own))) > 0 {
		return nil
	}
	value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), value, 0o644)
}

// enableControllers lets the children of a version 2 group use all its controllers.
func enableControllers(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var all []string
	for _, controller := range strings.Fields(string(data)) {
		all = append(all, "+"+controller)
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	err = os.WriteFile(control, []byte(strings.Join(all, " ")), 0o644)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	// Inside a container the root group is not the kernel's real root, so it must
	// not hold processes itself: put them one level down, as kind does.
	if err := moveAll(dir, filepath.Join(dir, "init")); err != nil {
		return err
	}
	return os.WriteFile(control, []byte(strings.Join(all, " ")), 0o644)
}

func moveAll(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	pids, err := pidsIn(from)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		// A process may have ended meanwhile; kernel threads cannot be moved.
		_ = os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
	}
	return nil
}

// Adopt puts one of the node's programs, and with it all its future children, into
// the group.
func (g *Group) Adopt(pid int) error {
	for _, t := range g.trees {
		path := g.dir(t, programs, "cgroup.procs")
		if err := os.WriteFile(path, []byte(strconv.Itoa(pid)), 0o644); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// KillAll ends every process in the group, pods included, and waits until none is
// left.
func (g *Group) KillAll(patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		pids := g.pids()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in control group %s do not end", pids, g.name)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		// Only looking again helps: the kernel has no event for a whole tree that
		// becomes empty, and the processes are not our children.
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *Group) pids() []int {
	var all []int
	for _, t := range g.trees {
		_ = filepath.WalkDir(g.dir(t), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				pids, _ := pidsIn(path)
				all = append(all, pids...)
			}
			return nil
		})
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func pidsIn(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		// Version 2 shows processes of another PID namespace as 0.
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Remove deletes the empty group.
func (g *Group) Remove() error {
	var errs []error
	for _, t := range g.trees {
		errs = append(errs, removeTree(g.dir(t)))
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	// The last process may still be on its way out: the kernel says busy then.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
