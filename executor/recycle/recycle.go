// Package recycle cleans a pod at the executor's start. A restart of all containers in place
// leaves what belongs to the pod and not to a container: /dev/shm, System V IPC, POSIX
// message queues, and the files that the runtime shares among the pod's containers. The
// first three are emptied, and the files must be as they were at first. The pod's first
// process is not restarted and could not be cleaned, so it is guarded from the start (First).
//
// All this works only in the pod's first restartable init container, when nothing else of
// the pod runs yet. What cannot be made clean is reported, so that the pod is deleted.
package recycle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
)

const (
	baselineFile = "pod-files.json"
	markerFile   = "restart-requested"
)

// othersPatience is how long the last containers' processes may take to go.
const othersPatience = 3 * time.Second

// Pod is what is shared by the containers of a pod.
type Pod struct {
	Shm    string
	Mqueue string
	// Files that must be as they were when the executor first started.
	Files []string
	// First is the process that is not restarted.
	First First
	// Others returns the pids of the pod's other processes.
	Others func() ([]int, error)
}

// ThisPod is the pod that the executor runs in.
func ThisPod() Pod {
	return Pod{
		Shm:    "/dev/shm",
		Mqueue: "/dev/mqueue",
		Files:  []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"},
		First:  First{PID: 1, Yama: "/proc/sys/kernel/yama/ptrace_scope"},
		Others: others,
	}
}

// RequestRestart notes that the next start follows a reset and must clean. A start without
// that note may be that of an executor that has crashed beside a sandbox in use, whose
// shared memory must not be emptied.
func RequestRestart(stateDir string) error {
	return store.WriteFile(filepath.Join(stateDir, markerFile), nil)
}

// AtStart cleans if a restart was requested, and tells what it found.
func (p Pod) AtStart(stateDir string) api.Recycle {
	marker := filepath.Join(stateDir, markerFile)
	_, err := os.Lstat(marker)
	requested := err == nil
	baseline, err := readBaseline(stateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !requested:
		// The baseline comes last: while there is none, nothing of a user has run yet.
		if err := p.First.guard(stateDir); err != nil {
			return dirty(err.Error())
		}
		if err := p.recordBaseline(stateDir); err != nil {
			return dirty(err.Error())
		}
		return api.Recycle{State: api.RecycleFirstStart, NotRestartable: text(p.First.guarded(stateDir))}
	case err != nil:
		return dirty(fmt.Sprintf("what the pod's files were at first is not known: %v", err))
	case !requested:
		return api.Recycle{State: api.RecycleNotRequested, NotRestartable: text(p.First.guarded(stateDir))}
	}
	differences := p.clean(baseline)
	if err := p.First.guarded(stateDir); err != nil {
		differences = append(differences, err.Error())
	}
	if len(differences) == 0 {
		if err := os.Remove(marker); err != nil {
			differences = append(differences, err.Error())
		}
	}
	if len(differences) > 0 {
		return dirty(differences...)
	}
	return api.Recycle{State: api.RecycleClean}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func dirty(differences ...string) api.Recycle {
	return api.Recycle{State: api.RecycleDirty, Differences: differences}
}

func (p Pod) clean(baseline map[string]fileState) []string {
	if err := p.awaitAlone(); err != nil {
		return []string{err.Error()} // another process could put back what is removed
	}
	if err := refuseNodeIPC("/proc/self/ns/ipc"); err != nil {
		return []string{err.Error()}
	}
	var differences []string
	for _, err := range []error{emptyDir(p.Shm), resetDir(p.Shm), emptyDir(p.Mqueue), removeSystemV()} {
		if err != nil {
			differences = append(differences, err.Error())
		}
	}
	for _, file := range p.Files {
		now, err := look(file)
		if err != nil {
			differences = append(differences, err.Error())
		} else if now != baseline[file] {
			differences = append(differences, file+" is not as it was at first")
		}
	}
	return differences
}

func (p Pod) awaitAlone() error {
	deadline := time.Now().Add(othersPatience)
	for {
		pids, err := p.Others()
		if err != nil {
			return fmt.Errorf("look for other processes: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("other processes of the pod are running: %v", pids[:min(len(pids), 8)])
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// others leaves out process 1, which is the pod's pause container and guarded, and
// this process with its ancestors. What is dead does nothing any more.
func others() ([]int, error) {
	mine := []int{1}
	for pid := os.Getpid(); pid > 1; {
		mine = append(mine, pid)
		s, err := procstat.Read(pid)
		if err != nil {
			return nil, err
		}
		pid = s.Parent
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || slices.Contains(mine, pid) {
			continue
		}
		if s, err := procstat.Read(pid); err == nil && !s.Dead() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// fileState is what must not have changed about a file, or about a directory and the names
// in it.
type fileState struct {
	Digest string      `json:"digest,omitempty"` // empty if there is no file
	Mode   fs.FileMode `json:"mode,omitempty"`
	UID    uint32      `json:"uid,omitempty"`
	GID    uint32      `json:"gid,omitempty"`
}

func look(path string) (fileState, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileState{}, nil
	}
	if err != nil {
		return fileState{}, err
	}
	state := fileState{Digest: "none", Mode: info.Mode()}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		state.UID, state.GID = owner.Uid, owner.Gid
	}
	switch {
	case info.Mode().IsRegular():
		state.Digest, err = digest(path)
	case info.IsDir():
		state.Digest, err = digestNames(path)
	}
	if err != nil {
		return fileState{}, err
	}
	return state, nil
}

// digest reads the file piece by piece: a sandbox may have made it larger than the memory.
func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func digestNames(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var names strings.Builder
	for _, entry := range entries { // sorted
		fmt.Fprintf(&names, "%s\x00%s\x00", entry.Name(), entry.Type())
	}
	sum := sha256.Sum256([]byte(names.String()))
	return hex.EncodeToString(sum[:]), nil
}

func (p Pod) recordBaseline(stateDir string) error {
	baseline := map[string]fileState{}
	for _, file := range p.Files {
		state, err := look(file)
		if err != nil {
			return fmt.Errorf("record the pod's files: %w", err)
		}
		baseline[file] = state
	}
	data, err := json.Marshal(baseline)
	if err != nil {
		return fmt.Errorf("record the pod's files: %w", err)
	}
	return store.WriteFile(filepath.Join(stateDir, baselineFile), data)
}

func readBaseline(stateDir string) (map[string]fileState, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, baselineFile))
	if err != nil {
		return nil, err
	}
	var baseline map[string]fileState
	if err := json.Unmarshal(data, &baseline); err != nil {
		return nil, err
	}
	return baseline, nil
}
