package process

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// credentials are what a process may do, as /proc/PID/status tells.
type credentials struct {
	UID         int      `json:"uid"`
	GID         int      `json:"gid"`
	Groups      []uint32 `json:"groups"`
	Umask       int      `json:"umask"`
	NoNewPrivs  bool     `json:"noNewPrivs"`
	Inheritable uint64   `json:"inheritable"`
	Permitted   uint64   `json:"permitted"`
	Effective   uint64   `json:"effective"`
	Bounding    uint64   `json:"bounding"`
	Ambient     uint64   `json:"ambient"`
}

// parseCredentials reads /proc/PID/status. Of the user and group ids it takes
// the effective ones.
func parseCredentials(status string) (credentials, error) {
	fields := map[string][]string{}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Fields(value)
	}
	var p statusParser
	c := credentials{
		UID:         int(p.number(fields, "Uid", 1)),
		GID:         int(p.number(fields, "Gid", 1)),
		Umask:       0o022,
		NoNewPrivs:  strings.Join(fields["NoNewPrivs"], "") == "1",
		Inheritable: p.mask(fields, "CapInh"),
		Permitted:   p.mask(fields, "CapPrm"),
		Effective:   p.mask(fields, "CapEff"),
		Bounding:    p.mask(fields, "CapBnd"),
		Ambient:     p.mask(fields, "CapAmb"),
	}
	for i := range fields["Groups"] {
		c.Groups = append(c.Groups, p.number(fields, "Groups", i))
	}
	if umask := fields["Umask"]; len(umask) == 1 {
		if n, err := strconv.ParseUint(umask[0], 8, 16); err == nil {
			c.Umask = int(n)
		}
	}
	return c, p.err
}

type statusParser struct{ err error }

func (p *statusParser) number(fields map[string][]string, key string, at int) uint32 {
	if at >= len(fields[key]) {
		p.err = fmt.Errorf("status has no %s", key)
		return 0
	}
	n, err := strconv.ParseUint(fields[key][at], 10, 32)
	if err != nil {
		p.err = fmt.Errorf("status has a malformed %s", key)
	}
	return uint32(n)
}

func (p *statusParser) mask(fields map[string][]string, key string) uint64 {
	if len(fields[key]) != 1 {
		p.err = fmt.Errorf("status has no %s", key)
		return 0
	}
	n, err := strconv.ParseUint(fields[key][0], 16, 64)
	if err != nil {
		p.err = fmt.Errorf("status has a malformed %s", key)
	}
	return n
}

var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
	"IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
	"SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
	"LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// namesOf lists capabilities as Kubernetes writes them, without "CAP_".
func namesOf(mask uint64) []string {
	names := []string{}
	for ; mask != 0; mask &= mask - 1 {
		bit := bits.TrailingZeros64(mask)
		if bit < len(capabilityNames) {
			names = append(names, capabilityNames[bit])
		} else {
			names = append(names, strconv.Itoa(bit))
		}
	}
	return names
}
