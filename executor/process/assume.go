package process

import (
	"errors"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// assume gives the calling thread these credentials and no others. The thread must be
// locked. What the executor has beyond them is given up in the bounding set too: a task of
// root would get it back at execve otherwise.
func (c *credentials) assume() *startError {
	own, err := ownCapabilities()
	if err != nil {
		return cannotStart("capget: %v", err)
	}
	unix.Umask(c.Umask)
	if err := c.dropBounding(); err != nil {
		return cannotStart("drop from the bounding set: %v", err)
	}
	if err := c.changeIDs(); err != nil {
		return err
	}
	if err := c.setCapabilities(own); err != nil {
		return cannotStart("set the capabilities: %v", err)
	}
	if c.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return cannotStart("set no-new-privs: %v", err)
		}
	}
	return nil
}

func (c *credentials) dropBounding() error {
	for bit := uintptr(0); bit < 64; bit++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, bit, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // past the last capability that the kernel knows
			return nil
		}
		if err != nil {
			return err
		}
		if has == 1 && c.Bounding&(1<<bit) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// changeIDs uses the plain system calls. Go's own change the ids of all threads, but the
// capabilities can be changed for one thread only, and both must be of the same one.
func (c *credentials) changeIDs() *startError {
	groups := unsafe.Pointer(unsafe.SliceData(c.Groups)) //nolint:gosec // G103: as golang.org/x/sys/unix does it
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), uintptr(groups), 0); errno != 0 {
		return cannotStart("setgroups %v: %v", c.Groups, errno)
	}
	gid, uid := uintptr(c.GID), uintptr(c.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return cannotStart("setresgid %d: %v", c.GID, errno)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return cannotStart("PR_SET_KEEPCAPS: %v", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return cannotStart("setresuid %d: %v", c.UID, errno)
	}
	return nil
}

// setCapabilities sets the capabilities of the credentials, as far as the executor has them.
func (c *credentials) setCapabilities(own uint64) error {
	inheritable, permitted := c.Inheritable&own, c.Permitted&own
	effective := c.Effective & permitted
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		data[i] = unix.CapUserData{Effective: half(effective, i), Permitted: half(permitted, i), Inheritable: half(inheritable, i)}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for bit := uintptr(0); bit < 64; bit++ {
		if c.Ambient&inheritable&permitted&(1<<bit) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// half returns the lower 32 bits of a mask (0) or the upper (1).
func half(mask uint64, which int) uint32 {
	return uint32(mask >> (32 * which) & math.MaxUint32)
}

// ownCapabilities returns the calling thread's permitted capabilities.
func ownCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}
