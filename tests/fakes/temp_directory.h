// A directory of one test's own.
#ifndef KAVERN_TESTS_FAKES_TEMP_DIRECTORY_H_
#define KAVERN_TESTS_FAKES_TEMP_DIRECTORY_H_

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace kavern {

// Gone, with all that is in it, when it is destroyed.
class TempDirectory {
 public:
  TempDirectory() : TempDirectory(std::filesystem::temp_directory_path()) {}
  explicit TempDirectory(const std::filesystem::path& parent) {
    std::string name = (parent / "kavern-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Where files are memory, if there is such a place: for tests that make thousands of them, none of
// which needs to last.
inline std::filesystem::path MemoryPath() {
  const std::filesystem::path memory = "/dev/shm";
  std::error_code ignored;
  return std::filesystem::is_directory(memory, ignored) ? memory
                                                        : std::filesystem::temp_directory_path();
}

}  // namespace kavern

#endif  // KAVERN_TESTS_FAKES_TEMP_DIRECTORY_H_
