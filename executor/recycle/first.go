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
// containers ends it. It runs without privileges, so a sandbox that can become its user
// could trace it and make it run code that outlives the restart. Two things prevent that:
// the process is made not dumpable; or, where that is not possible, the kernel's Yama module
// lets a process trace its descendants only. In both cases only CAP_SYS_PTRACE, which no
// sandbox has, allows to trace it.
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
	// Yama says that only Yama guards it.
	Yama bool `json:"yama,omitempty"`
	// Files can be changed although the process is guarded. They must stay as they were.
	Files map[string]fileState `json:"files,omitempty"`
	// Problem is why it is not guarded.
	Problem string `json:"problem,omitempty"`
}

func (r firstRecord) sameProcess(other firstRecord) bool {
	return r.Boot == other.Boot && r.StartTime == other.StartTime
}

// files are those below /proc/PID that root, or the process's user, can change from outside,
// and a directory of its root file system, which they can change where only Yama guards it.
// The kernel gives those of a process that is not dumpable to root, so a change of their
// owner shows that it has become dumpable again.
func (f First) files() []string {
	var files []string
	for _, name := range []string{"limits", "oom_score_adj", "root/dev"} {
		files = append(files, fmt.Sprintf("/proc/%d/%s", f.PID, name))
	}
	return files
}

// guard guards the process. It is called before anything of a user runs. It writes down
// whether that has worked, and fails only if it cannot write.
func (f First) guard(stateDir string) error {
	path := filepath.Join(stateDir, firstFile)
	if before, err := f.read(stateDir); err == nil && before.Problem != "" {
		return nil // not tried again: the first try may have made the containers restart
	}
	record, err := f.look()
	if err != nil {
		record.Problem = err.Error()
		return record.write(path)
	}
	record.Problem = "guarding it was begun and not finished"
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

// makeUndumpable makes the process not dumpable, if it is that of a pause container and
// neither the executor itself nor a process of the node.
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

// guarded returns an error if the process that is there now was not guarded from the start.
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

// guardedByYama returns an error unless Yama's mode is 1 (a process may trace its
// descendants), 2 (only a process with CAP_SYS_PTRACE may trace) or 3 (none may).
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
