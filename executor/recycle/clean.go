package recycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nodeIPC is the inode of the first IPC namespace, fixed in the kernel
// (PROC_IPC_INIT_INO).
const nodeIPC = "ipc:[4026531839]"

// Clean removes what the containers of the pod share, as far as it may. What it may not
// remove is found after the restart.
func (p Pod) Clean() error {
	if err := refuseNodeIPC(p.IPC); err != nil {
		return err
	}
	var errs []error
	for _, dir := range p.Dirs {
		entries, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, entry := range entries {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	for _, kind := range systemVKinds {
		errs = append(errs, kind.clean())
	}
	return errors.Join(errs...)
}

// refuseNodeIPC keeps a pod with hostIPC from emptying the node.
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

// systemV is one kind of System V IPC object. The system calls tell what there is, also
// where /proc/sysvipc is missing, as in gVisor. It takes no permission to count.
type systemV struct {
	name string
	// call is its ctl system call. argument is the position of its last argument; that of
	// semaphores takes one more before the command.
	call     uintptr
	argument int
	// info asks for a struct of numbers, of which count is that of objects; stat asks for
	// the id of the object at an index.
	info, stat uintptr
	count      int
}

var systemVKinds = []systemV{
	{name: "shared memory", call: unix.SYS_SHMCTL, argument: 2, info: 14, stat: 13, count: 0},  // SHM_INFO: used_ids
	{name: "semaphores", call: unix.SYS_SEMCTL, argument: 3, info: 19, stat: 18, count: 7},     // SEM_INFO: semusz
	{name: "message queues", call: unix.SYS_MSGCTL, argument: 2, info: 12, stat: 11, count: 0}, // MSG_INFO: msgpool
}

// control returns what the call returns, and what it has filled in.
func (k systemV) control(id, command uintptr) (result uintptr, filled [64]int32, errno unix.Errno) {
	if k.argument == 2 {
		result, _, errno = unix.RawSyscall(k.call, id, command, uintptr(unsafe.Pointer(&filled))) //nolint:gosec // G103: as golang.org/x/sys/unix does it
	} else {
		result, _, errno = unix.RawSyscall6(k.call, id, 0, command, uintptr(unsafe.Pointer(&filled)), 0, 0) //nolint:gosec // G103: the same
	}
	return result, filled, errno
}

// objects returns how many there are, and the highest index of one.
func (k systemV) objects() (count int32, last uintptr, err error) {
	last, filled, errno := k.control(0, k.info)
	switch {
	case errno == unix.ENOSYS: // a kernel without them
		return 0, 0, nil
	case errno != 0:
		return 0, 0, fmt.Errorf("count System V %s: %w", k.name, errno)
	}
	return filled[k.count], last, nil
}

// clean removes the objects that this user may remove.
func (k systemV) clean() error {
	count, last, err := k.objects()
	if err != nil || count == 0 {
		return err
	}
	for index := range last + 1 {
		if id, _, errno := k.control(index, k.stat); errno == 0 {
			_, _, _ = k.control(id, unix.IPC_RMID)
		}
	}
	if count, _, err = k.objects(); err == nil && count > 0 {
		err = fmt.Errorf("%d System V %s remain", count, k.name)
	}
	return err
}
