package recycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeIPC is the inode of the first IPC namespace, fixed in the kernel
// (PROC_IPC_INIT_INO).
const nodeIPC = "ipc:[4026531839]"

// refuseNodeIPC fails in a pod with hostIPC, which would empty the node's shared memory.
func refuseNodeIPC(link string) error {
	namespace, err := os.Readlink(link)
	if err != nil {
		return fmt.Errorf("look at the IPC namespace: %w", err)
	}
	if namespace == nodeIPC {
		return errors.New("the pod shares the node's IPC namespace")
	}
	return nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty %s: %w", dir, err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return nil
}

// resetDir undoes what a sandbox can change about the directory itself: its owner, its mode
// and its extended attributes.
func resetDir(dir string) error {
	if err := os.Chown(dir, 0, 0); err != nil {
		return fmt.Errorf("reset %s: %w", dir, err)
	}
	if err := unix.Chmod(dir, 0o1777); err != nil {
		return fmt.Errorf("reset %s: %w", dir, err)
	}
	names := make([]byte, 64<<10)
	n, err := unix.Listxattr(dir, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reset %s: %w", dir, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue // a security label, which a sandbox cannot set
		}
		if err := unix.Removexattr(dir, name); err != nil {
			return fmt.Errorf("reset %s: remove %s: %w", dir, name, err)
		}
	}
	return nil
}

// systemV is one kind of System V IPC object.
type systemV struct {
	table, id string
	remove    func(id uintptr) unix.Errno
}

var systemVKinds = []systemV{
	{"shm", "shmid", func(id uintptr) unix.Errno { return control(unix.SYS_SHMCTL, id, unix.IPC_RMID, 0) }},
	{"sem", "semid", func(id uintptr) unix.Errno { return control(unix.SYS_SEMCTL, id, 0, unix.IPC_RMID) }},
	{"msg", "msqid", func(id uintptr) unix.Errno { return control(unix.SYS_MSGCTL, id, unix.IPC_RMID, 0) }},
}

func control(call, id, a, b uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall(call, id, a, b)
	return errno
}

func removeSystemV() error {
	for _, kind := range systemVKinds {
		objects, err := kind.list()
		if err != nil {
			return err
		}
		for _, object := range objects {
			if errno := kind.removeAs(object); errno != 0 && errno != unix.EINVAL && errno != unix.EIDRM {
				return fmt.Errorf("remove System V %s %d: %w", kind.table, object.id, errno)
			}
		}
		left, err := kind.list()
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("%d System V objects (%s) remain", len(left), kind.table)
		}
	}
	return nil
}

type systemVObject struct{ id, uid int }

// list reads a table, whose columns its first line names.
func (k systemV) list() ([]systemVObject, error) {
	data, err := os.ReadFile("/proc/sysvipc/" + k.table)
	if errors.Is(err, os.ErrNotExist) { // a kernel without System V IPC
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list System V %s: %w", k.table, err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	column := map[string]int{}
	for i, name := range strings.Fields(lines[0]) {
		column[name] = i
	}
	var objects []systemVObject
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) != len(column) {
			return nil, fmt.Errorf("list System V %s: malformed line %q", k.table, line)
		}
		id, errID := strconv.Atoi(fields[column[k.id]])
		uid, errUID := strconv.Atoi(fields[column["uid"]])
		if errID != nil || errUID != nil {
			return nil, fmt.Errorf("list System V %s: malformed line %q", k.table, line)
		}
		objects = append(objects, systemVObject{id, uid})
	}
	return objects, nil
}

// removeAs removes an object as its owner. Root may not remove what belongs to another user
// without SYS_ADMIN, but can become that user for a moment. Only this thread does.
func (k systemV) removeAs(object systemVObject) unix.Errno {
	runtime.LockOSThread()
	const keep = ^uintptr(0)
	if errno := control(unix.SYS_SETRESUID, keep, uintptr(object.uid), keep); errno != 0 {
		runtime.UnlockOSThread()
		return errno
	}
	errno := k.remove(uintptr(object.id))
	if back := control(unix.SYS_SETRESUID, keep, 0, keep); back != 0 {
		return back // the thread stays locked: nothing else must run as another user
	}
	runtime.UnlockOSThread()
	return errno
}
