package recycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opensandbox/operator/executor/procstat"
	"github.com/opensandbox/operator/executor/store"
	"github.com/opensandbox/operator/executor/undump"
)

const firstFile = "first-process.json"

// nodePID is the inode of the first PID namespace, fixed in the kernel
// (PROC_PID_INIT_INO).
const nodePID = "pid:[4026531836]"

// First is the first process of the pod, that of its pause container. No restart of
// containers touches it, and it has no rights: a sandbox that may become any user could
// trace it as its user and have it run what is to outlive the restart. Not if it is not
// dumpable; or, where that cannot be arranged, if the kernel's Yama module forbids to
// trace what is no descendant. Either takes SYS_PTRACE then, which no sandbox has.
type First struct {
	PID int
	// Yama is the file with the module's mode, where the kernel has the module.
	Yama string
}

// firstRecord is which process was guarded, and how.
type firstRecord struct {
	// Boot and StartTime tell the process from every other of its pid.
	Boot      string `json:"boot"`
	StartTime uint64 `json:"startTime"`
	// Yama: it is only Yama that guards it.
	Yama bool `json:"yama,omitempty"`
	// Files are what can be changed about it even so.
	Files map[string]fileState `json:"files,omitempty"`
	// Problem is why it is not guarded.
	Problem string `json:"problem,omitempty"`
}

func (r firstRecord) sameProcess(other firstRecord) bool {
	return r.Boot == other.Boot && r.StartTime == other.StartTime
}

// files of the process that root, or its user, may change from outside; and its
// directories, where it is only Yama that guards it. That they are root's says, too, that
// it is not dumpable.
func (f First) files() []string {
	var files []string
	for _, name := range []string{"limits", "oom_score_adj", "root/dev"} {
		files = append(files, fmt.Sprintf("/proc/%d/%s", f.PID, name))
	}
	return files
}

// guard is called before anything of a user's runs. It fails only if it cannot note
// what came of it.
func (f First) guard(stateDir string) error {
	path := filepath.Join(stateDir, firstFile)
	if before, err := f.read(stateDir); err == nil && before.Problem != "" {
		return nil // not tried again: it may be why all began anew
	}
	record, err := f.look()
	if err != nil {
		record.Problem = err.Error()
		return record.write(path)
	}
	record.Problem = "to guard it was begun and not ended"
	if err := record.write(path); err != nil {
		return err
	}
	record.Problem = ""
	if err := f.protect(&record); err != nil {
		record.Problem = err.Error()
	}
	return record.write(path)
}

func (f First) protect(record *firstRecord) error {
	if err := f.makeUndumpable(); err != nil {
		if yama := f.guardedByYama(); yama != nil {
			return fmt.Errorf("%w; %w", err, yama)
		}
		record.Yama = true
	}
	record.Files = map[string]fileState{}
	for _, file := range f.files() {
		state, err := look(file)
		if err != nil {
			return err
		}
		record.Files[file] = state
	}
	return nil
}

// makeUndumpable takes care that it is a pause container's process.
func (f First) makeUndumpable() error {
	if f.PID == os.Getpid() {
		return errors.New("the pod does not share its process namespace")
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", f.PID))
	if err != nil {
		return fmt.Errorf("look at its namespace: %w", err)
	}
	if namespace == nodePID {
		return errors.New("it is the node's")
	}
	return undump.Process(f.PID)
}

// guarded says why the process that is there now was not guarded from the start.
func (f First) guarded(stateDir string) error {
	first, err := f.read(stateDir)
	if err == nil && first.Problem != "" {
		err = errors.New(first.Problem)
	}
	if err == nil {
		err = f.unchanged(first)
	}
	if err != nil {
		return fmt.Errorf("the pod's first process is not guarded: %w", err)
	}
	return nil
}

func (f First) unchanged(first firstRecord) error {
	now, err := f.look()
	switch {
	case err != nil:
		return err
	case !now.sameProcess(first):
		return errors.New("it is another one than at first")
	}
	for _, file := range f.files() {
		if state, err := look(file); err != nil {
			return err
		} else if state != first.Files[file] {
			return fmt.Errorf("%s is not as it was at first", file)
		}
	}
	if first.Yama {
		return f.guardedByYama()
	}
	return nil
}

// guardedByYama wants mode 1 (a process may trace its descendants), 2 (only with
// SYS_PTRACE) or 3 (never).
func (f First) guardedByYama() error {
	data, err := os.ReadFile(f.Yama)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no Yama")
	}
	if err != nil {
		return fmt.Errorf("look at Yama's mode: %w", err)
	}
	mode, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || mode < 1 {
		return fmt.Errorf("the mode of the kernel's Yama is %q", bytes.TrimSpace(data))
	}
	return nil
}

// look identifies the process.
func (f First) look() (firstRecord, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return firstRecord{}, fmt.Errorf("look at the node's boot: %w", err)
	}
	process, err := procstat.Read(f.PID)
	if err != nil {
		return firstRecord{}, fmt.Errorf("look at its start: %w", err)
	}
	return firstRecord{Boot: strings.TrimSpace(string(boot)), StartTime: process.StartTime}, nil
}

func (f First) read(stateDir string) (firstRecord, error) {
	var r firstRecord
	data, err := os.ReadFile(filepath.Join(stateDir, firstFile))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

func (r firstRecord) write(path string) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = store.WriteFile(path, data)
	}
	if err != nil {
		return fmt.Errorf("note whether the pod's first process is guarded: %w", err)
	}
	return nil
}
