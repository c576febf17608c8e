package process

import (
	"os"
	"path"
	"strconv"
	"strings"
)

// oomCounter reads how many processes of this cgroup the kernel has killed for
// want of memory.
type oomCounter struct{ files []string }

// newOOMCounter lists where the counter may be: in cgroup v1 or v2, and below the root of
// the hierarchy (where there is no cgroup namespace) or in the executor's own cgroup.
func newOOMCounter() oomCounter {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	var c oomCounter
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			c.files = append(c.files, path.Join("/sys/fs/cgroup", parts[2], "memory.events"), "/sys/fs/cgroup/memory.events")
		case parts[1] == "memory":
			c.files = append(c.files, path.Join("/sys/fs/cgroup/memory", parts[2], "memory.oom_control"), "/sys/fs/cgroup/memory/memory.oom_control")
		}
	}
	return c
}

func (c oomCounter) read() int64 {
	for _, file := range c.files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, found := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); found {
				n, _ := strconv.ParseInt(value, 10, 64)
				return n
			}
		}
	}
	return 0
}
