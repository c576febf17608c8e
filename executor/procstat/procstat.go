// Package procstat reads what the kernel says of processes in /proc/PID/stat.
package procstat

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Stat is what is needed of /proc/PID/stat; proc_pid_stat(5) numbers its fields.
type Stat struct {
	PID, Parent int
	State       byte // of the main thread
	Threads     int
	// StartTime in clock ticks since boot: with the pid it tells a process from every other.
	StartTime uint64
}

// Zombie says that the main thread has ended. Other threads may go on.
func (s Stat) Zombie() bool { return s.State == 'Z' || s.State == 'X' }

// Dead says that no thread lives: only the one that ended last is still counted. What is
// left of the process waits to be reaped by its parent, or by whoever traces it.
func (s Stat) Dead() bool { return s.Zombie() && s.Threads <= 1 }

// Read returns the error of os.ReadFile where there is no such process.
func Read(pid int) (Stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, err
	}
	return parse(pid, data)
}

// parse begins after the last parenthesis: before it stands the command's name, in which
// anything can stand, also ") R 1".
func parse(pid int, data []byte) (Stat, error) {
	const first = 3 // field after the name
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	s := Stat{PID: pid}
	var errs [3]error
	if len(fields) > 22-first && len(fields[0]) == 1 {
		s.State = fields[0][0]
		s.Parent, errs[0] = strconv.Atoi(fields[4-first])
		s.Threads, errs[1] = strconv.Atoi(fields[20-first])
		s.StartTime, errs[2] = strconv.ParseUint(fields[22-first], 10, 64)
		if errs == [3]error{} {
			return s, nil
		}
	}
	return Stat{}, fmt.Errorf("/proc/%d/stat is malformed: %.200q", pid, data)
}
