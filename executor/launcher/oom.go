package launcher

import (
	"os"
	"path"
	"strconv"
	"strings"
)

// oomKills reads how many processes of this container the kernel has killed for want of
// memory.
func oomKills() int64 {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var files []string // as seen from the root of the hierarchy, or from the own cgroup
		switch {
		case parts[0] == "0" && parts[1] == "": // cgroup v2
			files = []string{path.Join("/sys/fs/cgroup", parts[2], "memory.events"), "/sys/fs/cgroup/memory.events"}
		case parts[1] == "memory":
			files = []string{path.Join("/sys/fs/cgroup/memory", parts[2], "memory.oom_control"), "/sys/fs/cgroup/memory/memory.oom_control"}
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err == nil {
				return count(string(data))
			}
		}
	}
	return 0
}

func count(events string) int64 {
	for line := range strings.Lines(events) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); found {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}
