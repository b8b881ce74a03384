// kavern: the command line.
namespace kavern::cli {
int Main(int argc, char** argv);
}

int main(int argc, char** argv) {
  return kavern::cli::Main(argc, argv);
}
