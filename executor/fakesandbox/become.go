package fakesandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const readyFile = 3

// becomeSandbox turns this process into a sandbox's first process.
func becomeSandbox() int {
	runtime.LockOSThread()
	unix.CloseOnExec(readyFile)
	var o Options
	err := json.Unmarshal([]byte(os.Args[3]), &o)
	if err == nil {
		err = enter(os.Args[2], o.WorkingDir)
	}
	if err == nil {
		err = o.dropPrivileges()
	}
	if err == nil && o.HideEnv {
		if err = overwriteEnv(); err == nil {
			unix.Close(readyFile)
			select {}
		}
	}
	if err == nil {
		err = syscall.Exec("/bin/sleep", []string{"sleep", "100000"}, os.Environ())
	}
	fmt.Fprint(os.NewFile(readyFile, "ready"), err)
	return 1
}

// enter makes the root the only mount there is, as a container runtime does.
func enter(root, workingDir string) error {
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount(root, root, "", unix.MS_BIND, "") },
		func() error { return unix.Mount("proc", root+"/proc", "proc", 0, "") },
		func() error { return unix.Chdir(root) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/" + strings.TrimPrefix(workingDir, "/")) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func (o Options) dropPrivileges() error {
	for bit := uintptr(0); bit <= unix.CAP_LAST_CAP; bit++ {
		if o.Bounding&(1<<bit) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0); err != nil {
				return err
			}
		}
	}
	groups := make([]uint32, len(o.Groups))
	for i, g := range o.Groups {
		groups[i] = uint32(g)
	}
	unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(o.GID), uintptr(o.GID), uintptr(o.GID)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(o.UID), uintptr(o.UID), uintptr(o.UID)); errno != 0 {
		return errno
	}
	if o.NoNewPrivs {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

// overwriteEnv does what nginx does: it writes its title over the arguments
// and the environment, and fills the rest with NUL bytes.
func overwriteEnv() error {
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	start, err := strconv.ParseUint(fields[47], 10, 64) // env_start
	if err != nil {
		return err
	}
	end, err := strconv.ParseUint(fields[48], 10, 64)
	if err != nil {
		return err
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	text := make([]byte, end-start)
	copy(text, "aster process /usr/sbin/server -g daemon off;")
	_, err = memory.WriteAt(text, int64(start))
	return err
}
